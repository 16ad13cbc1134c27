"""The `macpo` command, from a checkout: `python cli.py --help`. It is written in macpo/cli.py.

Nothing imports this file and no installation contains it, so that a module of yours that is called
`cli` and the program never meet.
"""

from macpo.__main__ import main

if __name__ == "__main__":
    main()
