"""Exit of a failed command: one line for a person's mistake, a traceback for a bug."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from typer import Context, TyperException

from macpo_data.errors import Interrupted, MacpoError, hidden_os_error, plain

# What the system may be short of, of which it does not always say for which file.
SHORTAGES = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE,
    errno.ENOMEM, errno.EAGAIN, errno.ENOLCK,
)  # fmt: skip
INTERRUPTED = "interrupted; run the same command again to go on: what is finished stays"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a person's mistakes, Ctrl-C and what the system refuses into one line and an exit code.

    Raises:
        SystemExit: always where something went wrong that is no bug; 130 after Ctrl-C, 2 where the
            command line cannot be read, else 1.
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
    except TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # a bare `macpo`
            print(error.format_message(), end="")  # its help; empty where rich has shown it
        else:
            print(f"error: {_mistyped(error)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except MacpoError as error:
        sys.exit(f"error: {plain(' '.join(str(error).split()))}")
    except OSError as error:
        reason = refusal(error)
        if reason is None:
            raise
        sys.exit(
            f"error: {reason}; mend that and run the same command again: what is finished stays"
        )


def refusal(error: OSError) -> str | None:
    """What the system refused, and where; None where that is a bug, such as a closed file.

    >>> refusal(FileExistsError(17, "File exists", "runs"))
    'File exists (runs)'
    """
    if error.errno is None:  # raised by a library that names the system's error in its text alone
        error = hidden_os_error(error) or error
    if error.errno is None or (error.filename is None and error.errno not in SHORTAGES):
        return None
    where = "" if error.filename is None else plain(os.fsdecode(error.filename))
    what = os.strerror(error.errno)
    if where and Path(where).is_symlink() and not os.path.exists(where):
        what = "a link that leads nowhere"
    return f"{what} ({where})" if where else what


def _mistyped(error: TyperException) -> str:
    """What is wrong on a command line, and which command explains what it takes."""
    from macpo_run.terminal.lines import program

    context: Context | None = getattr(error, "ctx", None)
    command = "macpo" if context is None else context.command_path
    mistake = plain(" ".join(error.format_message().split())).rstrip(".")
    mistake += "" if mistake.endswith("?") else ";"
    explains = command.replace("macpo", program(), 1)
    return f"{mistake[:1].lower()}{mistake[1:]} `{explains} -h` explains what it takes"


def _interrupt(*_: object) -> None:
    # Inside polars, polars raises KeyboardInterrupt before Python calls this. What is tidied up for
    # that is not broken off; raised in a generator that is being closed, this would be lost.
    if not isinstance(sys.exc_info()[1], GeneratorExit | KeyboardInterrupt):
        raise Interrupted(INTERRUPTED)
