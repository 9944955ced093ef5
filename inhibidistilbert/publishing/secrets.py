"""Looks for tokens, keys and passwords in the text of files."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_PATTERNS = {
    "a Hugging Face token": r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})",
    "an API key": r"\b(?:sk|pk|rk)-[A-Za-z0-9_-]{20,}",
    "an AWS access key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a Google API key": r"\bAIza[A-Za-z0-9_-]{35}",
    "a Slack token": r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",
    "a JSON web token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"\b[a-z][a-z0-9+.-]*://[^\s/:@\"'<>]+:[^\s/:@\"'<>]+@",
    "a value that is called a secret": (
        r"(?i:\b[\w-]*(?:password|passwd|secret|api[_-]?key|access[_-]?token|auth[_-]?token)[\"']?\s*[:=]\s*[\"'][^\"'\s]{8,}[\"'])"
    ),
}
_SECRETS = {kind: re.compile(pattern) for kind, pattern in _PATTERNS.items()}


@dataclass(frozen=True)
class Secret:
    """What kind of secret stands on which line, from 1. The secret itself is kept nowhere."""

    kind: str
    line: int


def find_secrets(text: str, own_token: str | None = None) -> Iterator[Secret]:
    """Every line that holds a secret; `own_token` is found whatever its form."""
    for number, line in enumerate(text.splitlines(), 1):
        if own_token and own_token in line:
            yield Secret("the token in use", number)
            continue
        for kind, pattern in _SECRETS.items():
            if pattern.search(line):
                yield Secret(kind, number)
                break
