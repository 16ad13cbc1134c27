"""Signs of failure in datasets and trainings: values, thresholds, and what to try.

Pure: frames and earlier signs in, signs out. May import schema and text.
"""
