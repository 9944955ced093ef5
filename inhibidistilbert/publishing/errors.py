"""Why a publication stopped, where the input was good."""

from json import JSONDecodeError

from huggingface_hub.errors import HfHubHTTPError, HTTPError, RevisionNotFoundError

from ..support.errors import reason
from .client import httpx, seconds_to_wait

_LONGEST_LINE = 500

# What the client raises where an answer is not of its form.
_FORM_ERRORS = (
    *(JSONDecodeError, UnicodeError, RecursionError),
    *(LookupError, TypeError, AttributeError, ArithmeticError, AssertionError),
)
# What it raises when a request fails: its own errors, those of the connection, those of an upload and of metadata.
HUB_ERRORS = (HTTPError, OSError, RuntimeError, ValueError, *_FORM_ERRORS)
_ANSWERS = {
    401: "the Hub does not accept the token: log in anew with `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there: use one with write permission for this repository",
    404: "the Hub finds no such repository, or the token may not see it",
    409: "the Hub reports a conflict with what is there: look at the repository, then run the same command again",
    412: "someone else published there meanwhile: run the same command again to see what would change now",
    429: "the Hub received too many requests: run the same command again",
}


class PublishError(Exception):
    """The publication stopped: one line that says why, what is on the Hub now and what to do. The command exits with 1."""


class Unreachable(PublishError):
    """There was no answer at all."""


def is_unreachable(error: BaseException) -> bool:
    """Whether a request got no answer: no network, or none wanted."""
    root = _root(error)
    answered = isinstance(root, HfHubHTTPError | httpx.TooManyRedirects)
    return isinstance(root, ConnectionError) or (isinstance(root, HTTPError) and not answered)


def explain(error: BaseException) -> str:
    """One line on why a request to the Hub failed. It never quotes addresses or headers, which may carry credentials."""
    line = " ".join(_explain(_root(error)).split())
    return "".join(character if character.isprintable() else "?" for character in line[:_LONGEST_LINE])


def _explain(root: BaseException) -> str:
    if isinstance(root, RevisionNotFoundError):
        return "the Hub does not know this revision"
    if isinstance(root, HfHubHTTPError):
        return _answer(root)
    if isinstance(root, httpx.TooManyRedirects):
        return "the Hub redirects in a circle: look at HF_ENDPOINT"
    if isinstance(root, HTTPError):
        return f"the connection to the Hub was lost ({type(root).__name__}): run the same command again to resume"
    if isinstance(root, _FORM_ERRORS):
        return (
            f"the Hub's answer is not of its form ({type(root).__name__}: {root}): look at HF_ENDPOINT, or try again later"
        )
    return reason(root)


def _answer(error: HfHubHTTPError) -> str:
    """By the status; with the time to wait and, for refused content, the Hub's own words."""
    status, wait = error.response.status_code, seconds_to_wait(error.response)
    after = "" if wait is None else f" after {wait:.0f} seconds"
    if status >= 500:
        return f"the Hub failed (HTTP {status}): run the same command again{after} to resume"
    text = _ANSWERS.get(status, f"the Hub refused the request: {error.server_message or 'without a reason'}")
    return f"{text}{after} (HTTP {status})"


def _root(error: BaseException) -> BaseException:
    """The client wraps what goes wrong during an upload: the innermost error that came from a request, or `error`."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, HfHubHTTPError | HTTPError):
            return current
        current = current.__cause__
    return error
