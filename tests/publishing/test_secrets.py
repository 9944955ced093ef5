"""Secrets are found in the forms they have, and not where there are none."""

import pytest
from publishable import TOKEN

from inhibidistilbert.publishing.secrets import find_secrets

SECRETS = {
    "a Hugging Face token": f"login(token={TOKEN})",
    "a GitHub token": "ghp_" + "a1B2" * 9,
    "an API key": "key: sk-" + "a1B2" * 10,
    "an AWS access key": "AKIA" + "ABCD2345" * 2,
    "a Google API key": "AIza" + "aB3-_" * 7,
    "a Slack token": "xoxb-1234567890-abcdef",
    "a JSON web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTYifQ.c2lnbmF0dXJlMTIz",
    "a private key": "-----BEGIN RSA PRIVATE KEY-----",
    "a password in an address": "https://someone:sesame@example.org/data",
    "a value that is called a secret": 'wandb_api_key = "0123456789abcdef"',
}
HARMLESS = [
    "https://huggingface.co/datasets/stanfordnlp/imdb",
    '"pad_token": "[PAD]", "sep_token": "[SEP]"',
    "the secret: a quiet film",
    "commit e6281661ce1c48d982bc483cf8a173c1bbeb5d31",
    "password: str",
    "disk-" + "a" * 30,
]


@pytest.mark.parametrize("kind", SECRETS)
def test_found_with_its_line(kind):
    found = list(find_secrets(f"first line\n{SECRETS[kind]}\n"))
    assert [(secret.kind, secret.line) for secret in found] == [(kind, 2)]
    assert SECRETS[kind] not in repr(found)


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless(text):
    assert not list(find_secrets(text))


def test_own_token_of_any_form():
    assert [secret.kind for secret in find_secrets("x = open-sesame", own_token="open-sesame")] == ["the token in use"]
