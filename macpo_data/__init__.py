"""Writes datasets, round by round. Importing it loads neither torch nor vllm."""
