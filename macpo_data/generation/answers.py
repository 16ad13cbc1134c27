"""Whether an answer is right: numbers and formulas by the library math-verify, other text exactly.

A worked answer that ends in "#### 72", as those of GSM8K do, is 72. What a model wrote is data from
outside: a formula of its may ask for any work, and gets some seconds and some memory.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from importlib.util import find_spec

from macpo_data.errors import DataError
from macpo_data.models.bounds import OutOfBounds, bounded

RIGHT_ANSWERS = "right answers"  # who judges, as people call it
VERSION = 1  # of what counts as right
INSTALL = 'pip install "macpo[math]"'
_MARK = "####"  # before the result of a worked answer
_LONGEST = 2000  # characters at an answer's end in which its result is looked for
_NUMBER = re.compile(r"[-+]?[$€£]?[-+]?\d[\d,]*(\.\d+)?(\s*/\s*\d+)?\s*%?\.?")
_FORMULA = re.compile(r"\$.+\$|\\boxed\{|\\frac|\\sqrt", re.DOTALL)


def is_missing() -> bool:
    """Whether the library is not installed that compares numbers."""
    return find_spec("math_verify") is None


def check(rights: Iterable[str | None]) -> None:
    """See that every prompt has a right answer, and that numbers can be compared.

    Raises:
        DataError: with what to mend.
    """
    known = list(rights)
    if missing := sum(right is None or not right.strip() for right in known):
        raise DataError(
            f"eval.by=answer: {missing} of {len(known)} test prompts have no right answer; name "
            "their column with data.right"
        )
    if is_missing() and any(is_mathematical(right or "") for right in known):
        raise DataError(f"eval.by=answer: numbers are compared by math-verify; {INSTALL}")


def is_mathematical(right: str) -> bool:
    """Whether a right answer is a number or a formula.

    >>> [is_mathematical(text) for text in ("so #### 1,072", "3/4", "Route 66", "(B)")]
    [True, True, False, False]
    """
    result = _result(right)
    return bool(_NUMBER.fullmatch(result) or _FORMULA.search(result))


def is_right(right: str, written: str | None) -> bool:
    """Whether an answer agrees with the right one.

    Of a number the last one in the answer counts, or the one in its box. Other text has to be the
    same but for white space around it.
    """
    if not written or not written.strip():
        return False
    if not is_mathematical(right):
        return _result(written) == _result(right)
    from math_verify import parse, verify

    # We bound the work ourselves: its own clock runs in the main thread alone, and says so often.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    text = _result(written)[-_LONGEST:]
    try:
        with bounded(len(text)):
            expected = parse(_result(right), parsing_timeout=None)
            return bool(verify(expected, parse(text, parsing_timeout=None), timeout_seconds=None))
    except (OutOfBounds, MemoryError, RecursionError):
        return False


def _result(text: str) -> str:
    """What stands behind the mark of a result, or all of it."""
    return text.rpartition(_MARK)[2].strip()
