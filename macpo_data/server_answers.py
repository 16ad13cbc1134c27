"""Answers of servers, read whole within a bound: a server may send without an end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from macpo_data.outside import OutsideError

if TYPE_CHECKING:
    from httpx2 import Response


class TooLong(OutsideError):
    """An answer that goes on beyond all that is read of one."""


class Body:
    """What came of an answer's content so far, decoded."""

    def __init__(self, most: int) -> None:
        """Nothing came yet; at most `most` bytes may."""
        self._most, self._parts, self._size = most, list[bytes](), 0

    def add(self, part: bytes) -> None:
        """Keep a part of it.

        Raises:
            TooLong: that is too much.
        """
        self._size += len(part)
        if self._size > self._most:
            raise TooLong(f"an answer of more than {self._most:,} bytes")
        self._parts.append(part)

    def whole(self, streamed: Response) -> Response:
        """The same answer with its content, as if it had been read at once."""
        from httpx2 import Response

        content = b"".join(self._parts)
        kept = {"content-encoding", "content-length", "transfer-encoding"}
        headers = [(k, v) for k, v in streamed.headers.multi_items() if k.lower() not in kept]
        response = Response(
            streamed.status_code,
            headers=[*headers, ("content-length", str(len(content)))],
            content=content,
            request=streamed.request,
            extensions=streamed.extensions,
            history=streamed.history,
        )
        response.next_request = streamed.next_request
        return response
