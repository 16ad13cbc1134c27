"""Runs as one HTML page: what is collected, which texts are shown, and the page itself.

May import everything of macpo_data but hub and forms.
"""
