"""Exit of a failed command: one line for a person's mistake, a traceback for a bug."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from macpo_data.errors import Interrupted, MacpoError, plain

# A disk that is full or out of quota, or a path that cannot be what it has to be.
DISK_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS,
    errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
)  # fmt: skip
INTERRUPTED = "interrupted; run the same command again to go on: what is finished stays"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a person's mistakes, Ctrl-C and a full disk into one line on stderr, and an exit code.

    Raises:
        SystemExit: always where something went wrong that is no bug; 130 after Ctrl-C, else 1.
    """
    # Raised as any other error, before typer would end silently.
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    except Interrupted as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(130)
    except SystemExit as ended:
        if ended.code == 130:  # what typer makes of the KeyboardInterrupt that polars raises
            print(f"error: {INTERRUPTED}", file=sys.stderr)
        raise
    except MacpoError as error:
        sys.exit(f"error: {plain(' '.join(str(error).split()))}")
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        where = f" ({plain(str(error.filename))})" if error.filename else ""
        sys.exit(
            f"error: {os.strerror(error.errno)}{where}; mend that and run the same command again: "
            "what is finished stays"
        )


def _interrupt(*_: object) -> None:
    # Inside polars, polars raises KeyboardInterrupt before Python calls this. What is tidied up for
    # that is not broken off; raised in a generator that is being closed, this would be lost.
    if not isinstance(sys.exc_info()[1], GeneratorExit | KeyboardInterrupt):
        raise Interrupted(INTERRUPTED)
