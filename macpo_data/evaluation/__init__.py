"""Evaluation of policies: held-out answers, metrics, intervals, signs of failure, verdicts.

May import generation and what lies below it; never methods, hub or report.
"""
