"""Publishing to and pulling from the Hugging Face Hub: a round's files and its dataset card.

May import methods, generation and what lies below; never report.
"""
