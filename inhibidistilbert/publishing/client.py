"""How requests to the Hub end: waits that the Hub asks for, and limits of what huggingface_hub would go on with for ever."""

import contextlib
import logging
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

from huggingface_hub import get_session, set_client_factory
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import hf_raise_for_status, parse_ratelimit_headers

# The library that huggingface_hub sends requests with: httpx, or httpx2 in later versions.
httpx: Any = sys.modules[HTTPError.__module__.partition(".")[0]]

logger = logging.getLogger(__name__)

LONGEST_WAIT = 300.0  # seconds: a window of the Hub's limits. Longer than this a maintainer would rather be told than wait.
_ATTEMPTS = 3
_SILENCE = 60.0  # seconds without a byte
_LONGEST_ANSWER = 60.0  # seconds for a whole body; a file has more, by its size at the slowest rate
_SLOWEST = 10_000  # bytes a second
_LARGEST_ANSWER = 1 << 26  # bytes, of what is no file with a length of its own
_PAGES = 1000  # requests of one address, such as the pages of a list


class BadAnswer(OSError):
    """An answer of the Hub that would not end. Unlike an error of the connection it is no reason to ask again."""


def seconds_to_wait(response: Any) -> float | None:
    """How long the Hub asks to wait before a request is sent again; None where it does not say."""
    status, headers = response.status_code, response.headers
    waits = []
    if status == 429:
        limit, reset = parse_ratelimit_headers(headers), headers.get("RateLimit-Reset", "")
        if limit is not None and limit.remaining == 0:
            waits.append(float(limit.reset_in_seconds))
        elif re.fullmatch("[0-9]+", reset):
            waits.append(float(reset))
    after = headers.get("Retry-After", "").strip()
    if re.fullmatch("[0-9]+", after):
        waits.append(float(after))
    elif after:
        with contextlib.suppress(ValueError, OverflowError):  # no date
            waits.append(parsedate_to_datetime(after).timestamp() - time.time())
    return max(1.0, *waits) if waits and (status in (408, 429) or status >= 500) else None


class _Ending(httpx.SyncByteStream):
    """The body of an answer, up to where it would be without an end."""

    def __init__(self, response: Any) -> None:
        self._stream, request = response.stream, response.request
        is_file = (
            "Content-Length" in response.headers and request.method == "GET" and not request.url.path.startswith("/api/")
        )
        self._most: float = math.inf if is_file else _LARGEST_ANSWER
        self._rate: float = _SLOWEST if is_file else math.inf

    def __iter__(self) -> Iterator[bytes]:
        began, size = time.monotonic(), 0
        for chunk in self._stream:
            size += len(chunk)
            if size > self._most:
                raise BadAnswer(f"the Hub's answer does not end: {size} bytes came")
            if time.monotonic() - began > _LONGEST_ANSWER + size / self._rate:
                raise BadAnswer(f"the Hub's answer comes too slowly: {size} bytes in {time.monotonic() - began:.0f} seconds")
            yield chunk

    def close(self) -> None:
        self._stream.close()


class PatientClient(httpx.Client):
    """Waits and asks again where the Hub says so, and never waits for ever.

    Raises:
        HfHubHTTPError: the Hub asks for a longer wait than `LONGEST_WAIT`, or again and again.
        BadAnswer: an answer, or a list, does not end.
    """

    def __init__(self, before_request: list[Any]):
        hooks = {"request": before_request, "response": [lambda response: setattr(response, "stream", _Ending(response))]}
        super().__init__(event_hooks=hooks, follow_redirects=True, timeout=None)
        self._asked: Counter[tuple[str, str, str]] = Counter()

    def send(self, request: Any, **options: Any) -> Any:
        address = request.method, request.url.host, request.url.path
        self._asked[address] += 1
        if request.method == "GET" and self._asked[address] > _PAGES:
            raise BadAnswer(f"the Hub's list does not end: {_PAGES} pages came")
        # huggingface_hub switches the limit off for some requests.
        limits = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {name: limits.get(name) or _SILENCE for name in ("connect", "read", "write", "pool")}
        attempts = 1
        while True:
            response = super().send(request, **options)
            wait = seconds_to_wait(response)
            if wait is None:
                return response
            if wait > LONGEST_WAIT or attempts == _ATTEMPTS:
                response.read()
                hf_raise_for_status(response)
            if response.status_code != 429 and request.method not in ("GET", "HEAD"):
                return response  # something may have happened
            logger.warning("The Hub asks to wait %.0f seconds before the next request: waiting.", wait)
            if not isinstance(request.stream, httpx.ByteStream):
                return response  # huggingface_hub waits as long, and reads the file from its start again
            response.close()
            time.sleep(wait)
            attempts += 1


def be_patient() -> None:
    """From now on the requests of huggingface_hub go through a `PatientClient`."""
    session = get_session()
    if not isinstance(session, PatientClient):
        hooks = session.event_hooks["request"]  # such as the refusal while offline
        set_client_factory(lambda: PatientClient(hooks))
