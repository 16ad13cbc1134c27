"""What a person sees in the terminal: values in, lines and tables out; nothing is decided here.

Text from models and files is printed as text, never as markup, and without control characters.
"""
