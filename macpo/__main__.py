"""`macpo`, and `python -m macpo`: loads the command line, where Ctrl-C is one line already."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Load the command line, which takes a moment, and run it."""
    signal.signal(signal.SIGINT, _interrupt)
    from macpo.cli import main as run

    try:
        run()
    finally:  # all is done and said: Python's own end, half a second, may be broken off anywhere
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _interrupt(*_: object) -> None:
    # Nothing has begun; raised in the middle of an import, it may be caught by a library.
    os.write(2, b"error: interrupted before anything began\n")
    os._exit(130)


if __name__ == "__main__":
    main()
