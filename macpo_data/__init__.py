"""Generates preference datasets, round by round. Importing it loads neither torch nor vLLM."""
