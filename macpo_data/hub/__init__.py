"""Publishing and fetching: a round as a tree of files with a card, and the calls to the Hub.

May import methods, generation and what lies below; never report.
"""
