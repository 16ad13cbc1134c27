"""The implementation of each `macpo` command, after its options are parsed.

They call the rest of the program and print what comes of it with `macpo_run.terminal`.
"""
