"""Terminal output: values in, lines and tables out; nothing is computed here.

Text from models and files is printed as text, never as markup, and without control characters.
"""
