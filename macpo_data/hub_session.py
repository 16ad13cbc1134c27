"""The HTTP client with which all libraries ask the Hub: patient with a moment, not with silence.

A Hub that nobody reached yet is told at once, for then it is the network or the address that is
wrong. Later, what fails may pass, and the libraries ask again, until nobody has answered for
long. No answer that is read whole is without an end.
"""

from __future__ import annotations

import logging
import os
import time
from functools import cache
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import HfApi, constants, set_client_factory
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils._http import hf_request_event_hook
from huggingface_hub.utils.tqdm import disable_progress_bars

from macpo_data.errors import HubError
from macpo_data.outside import JSON_BYTES
from macpo_data.server_answers import Body, TooLong

TIMEOUT = 60.0  # seconds without a sign of it, after which a request failed
FIRST_TIMEOUT = 10.0  # seconds to its first answer
CONNECT_TIMEOUT = 8.0  # seconds to a connection
FIRST_PATIENCE = 3.0  # seconds in which a connection may break before there was any answer
PATIENCE = 2.0  # times TIMEOUT, from the first of requests that all failed


_LOCK = Lock()


class NobodyAnswers(OfflineModeIsEnabled):
    """The Hub is out of reach, and it is no use to ask again. It says which host, and why.

    The libraries treat it as they treat having no network: what is in a cache they take from there.
    """


def connect() -> HfApi:
    """The Hub, with bounds on how long it may stay silent, and on what it sends.

    Whoever asks it through a library calls this before, too.
    """
    with _LOCK:
        _set_client()
    disable_progress_bars()
    # That a commit would change nothing is no warning here: a push may be repeated.
    logging.getLogger("huggingface_hub.hf_api").setLevel(logging.ERROR)
    return HfApi()


@cache
def _set_client() -> None:
    """Once: the library closes the client of before, with which another thread may be reading."""
    set_client_factory(_Client)


def timeout() -> float:
    """Seconds without a sign of the Hub, after which a request failed."""
    return float(os.environ.get("MACPO_HUB_TIMEOUT", TIMEOUT))


class _Reached:
    """Whether anybody has answered this process, and since when nobody does."""

    ever = False
    failing_since: float | None = None

    @classmethod
    def answered(cls) -> None:
        cls.ever, cls.failing_since = True, None

    @classmethod
    def failed(cls, error: httpx2.TransportError, host: str, waited: float) -> None:
        """Note a failed request.

        Raises:
            NobodyAnswers: it is no use to ask again.
        """
        now = time.monotonic()
        cls.failing_since = cls.failing_since or now
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            why, patience = "cannot be reached", 0.0
        elif isinstance(error, httpx2.TimeoutException):
            why, patience = f"gave no answer within {waited:.0f} s", 0.0
        else:  # somebody is there, who may be starting
            why, patience = "breaks the connection off", FIRST_PATIENCE
        if cls.ever:
            patience = PATIENCE * timeout()
        if now - cls.failing_since >= patience:
            raise NobodyAnswers(f"{host} {why}") from None


class _Client(httpx2.Client):
    """As the library's own, within bounds."""

    def __init__(self) -> None:
        # The library's own client waits for ever.
        limits = httpx2.Timeout(timeout(), connect=min(CONNECT_TIMEOUT, timeout()))
        hooks = [hf_request_event_hook, _keep_token_home]
        super().__init__(event_hooks={"request": hooks}, follow_redirects=True, timeout=limits)

    def send(self, request: httpx2.Request, *, stream: bool = False, **settings: Any) -> Any:
        """Send a request, and where it is not streamed, read the answer within a bound.

        Raises:
            HubError: the answer is larger than any of a Hub's.
            NobodyAnswers: it is no use to ask again.
        """
        begun = time.monotonic()
        if not _Reached.ever:
            waits = request.extensions.get("timeout") or self.timeout.as_dict()
            first = {each: min(waits[each] or FIRST_TIMEOUT, FIRST_TIMEOUT) for each in waits}
            request.extensions = {**request.extensions, "timeout": first}
        try:
            response = self._send(request, stream, **settings)
        except httpx2.TransportError as error:
            _Reached.failed(error, request.url.host, time.monotonic() - begun)
            raise
        _Reached.answered()
        return response

    def _send(
        self,
        request: httpx2.Request,
        stream: bool,
        follow_redirects: Any = httpx2.USE_CLIENT_DEFAULT,
        **settings: Any,
    ) -> httpx2.Response:
        """Walk from redirect to redirect, whose pages are read within the bound as well."""
        follows = self.follow_redirects
        if isinstance(follow_redirects, bool):
            follows = follow_redirects
        for _ in range(self.max_redirects + 1):
            response = super().send(request, stream=True, follow_redirects=False, **settings)
            to = response.next_request if follows else None
            if stream and to is None:
                return response
            response = _read(response)
            if to is None:
                return response
            request = to
        raise httpx2.TooManyRedirects("too many redirects", request=request)


def _read(response: httpx2.Response) -> httpx2.Response:
    """An answer with its content.

    Raises:
        HubError: it is larger than any of a Hub's.
        httpx2.ReadTimeout: it still goes on when another would have been given up.
    """
    if response.request.method == "HEAD":  # its headers speak of a content that does not come
        response.read()
        return response
    body, ends = Body(JSON_BYTES), time.monotonic() + timeout()
    try:
        for part in response.iter_bytes():
            body.add(part)
            if time.monotonic() > ends:
                raise httpx2.ReadTimeout("an answer without an end", request=response.request)
    except TooLong as error:
        raise HubError(
            f"{response.url.host} sends {error}, which no Hub does; check HF_ENDPOINT and what "
            "stands in between"
        ) from None
    finally:
        response.close()
    return body.whole(response)


def _keep_token_home(request: httpx2.Request) -> None:
    """Send the token to the Hub alone: a page or an upload that it names may be anywhere."""
    home, to = urlsplit(constants.ENDPOINT), urlsplit(str(request.url))
    if (to.scheme, to.netloc) != (home.scheme, home.netloc):
        request.headers.pop("authorization", None)
