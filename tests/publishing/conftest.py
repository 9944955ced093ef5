"""A publishable checkpoint, and a Hub to publish it to from this process."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from inhibidistilbert.support import clean_process
from tests.helpers.hub import WritableHub
from tests.helpers.publishable import TOKEN, assembled, write_checkpoint


@pytest.fixture(scope="session")
def original(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("maintainer") / "checkpoint")


@pytest.fixture
def checkpoint(original, tmp_path) -> Path:
    """A copy of its own for each test."""
    return Path(shutil.copytree(original, tmp_path / "checkpoint"))


@pytest.fixture
def candidate(checkpoint, tmp_path):
    return assembled(checkpoint, tmp_path / "assembled")


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[WritableHub]:
    with WritableHub(TOKEN) as hub, hub.for_this_process(tmp_path / "cache"):
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch, tmp_path_factory) -> None:
    """The clean processes share a cache of machine code: to compile it anew takes each of them seconds."""
    monkeypatch.setenv("INHIBIDISTILBERT_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "machine-code"))
    monkeypatch.setattr(clean_process, "_INHERITED", (*clean_process._INHERITED, "INHIBIDISTILBERT_CACHE_DIR"))


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The client does not wait before it tries again, but says here for how long it would have."""
    seconds: list[float] = []
    monkeypatch.setattr("time.sleep", seconds.append)
    return seconds
