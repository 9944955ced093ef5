"""How long the Hub asks to wait, and lists that do not end; test_upload.py has whole publications that meet such answers."""

from email.utils import formatdate
from time import time

import pytest
from huggingface_hub import HfApi

from inhibidistilbert.publishing import client
from inhibidistilbert.publishing.client import httpx, seconds_to_wait
from inhibidistilbert.publishing.errors import PublishError
from inhibidistilbert.publishing.upload import telling
from tests.helpers.hub import Response
from tests.helpers.publishable import REPO_ID


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {"Retry-After": "120"}, 120),
        (503, {"Retry-After": "120"}, 120),
        (429, {"RateLimit": '"api";r=0;t=55'}, 55),
        (429, {"ratelimit": '"api";r=0;t=55', "Retry-After": "60"}, 60),
        (429, {"RateLimit-Reset": "55"}, 55),
        (429, {"Retry-After": "0"}, 1),
        (429, {"Retry-After": formatdate(0, usegmt=True)}, 1),
        (429, {"RateLimit": '"api";r=7;t=55'}, None),
        (429, {"RateLimit": "soon", "RateLimit-Reset": "-5", "Retry-After": "\u00b2"}, None),
        (429, {}, None),
        (404, {"RateLimit": '"api";r=0;t=55', "Retry-After": "5"}, None),
        (200, {"RateLimit": '"api";r=0;t=55', "Retry-After": "5"}, None),
    ],
)
def test_what_the_headers_ask_for(status, headers, seconds):
    coded = {name: value.encode("latin-1") for name, value in headers.items()}
    assert seconds_to_wait(httpx.Response(status, headers=coded)) == seconds


def test_a_date_to_wait_for():
    response = httpx.Response(429, headers={"Retry-After": formatdate(time() + 100, usegmt=True)})
    assert seconds_to_wait(response) == pytest.approx(100, abs=3)


def test_a_list_whose_pages_go_in_a_circle_ends(hub, monkeypatch):
    monkeypatch.setattr(client, "_PAGES", 20)
    page = f"{hub.endpoint}/api/models/{REPO_ID}/tree/main"
    hub.answer("GET .*/tree/main", Response(200, b"[]", {"Link": f'<{page}>; rel="next"'}), 1000)
    with pytest.raises(PublishError, match="the Hub's list does not end: 20 pages"), telling("Nothing was sent."):
        list(HfApi().list_repo_tree(REPO_ID, recursive=True))
