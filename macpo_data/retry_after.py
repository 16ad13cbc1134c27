"""The HTTP header Retry-After: how long a server asks a client to wait."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the header Retry-After asks to wait, a number or a date.

    Args:
        headers: of an answer; without regard to case, or with names in small letters.

    Returns:
        What is asked, which may be for ever (inf): whoever waits has a bound. 0 where it asks for
        none.
    """
    text = headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError):  # no date, or one that no clock has
            return 0.0
    return seconds if seconds > 0 else 0.0
