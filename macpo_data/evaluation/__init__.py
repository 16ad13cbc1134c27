"""How good the policies are: answers to held-out prompts, measures, intervals, signs, the verdict.

May import generation and what lies below it; never methods, hub or report.
"""
