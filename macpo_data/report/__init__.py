"""The HTML report of a run: its data, the texts that it shows, and the page.

May import everything of macpo_data but hub and forms.
"""
