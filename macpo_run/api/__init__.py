"""The functions that `import macpo` offers; each does what a command does, on values and frames."""
