"""What each command of `macpo` does, once its options are parsed: a function per command.

They call the rest of the program and print what comes of it with `macpo_run.terminal`.
"""
