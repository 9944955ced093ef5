"""A publishable checkpoint, and a Hub to publish it to from this process."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

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
    """huggingface_hub's settings are read at import: here they point to the loopback Hub, and caches are empty."""
    with WritableHub(TOKEN) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants._HF_DEFAULT_ENDPOINT, hub.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        huggingface_hub.utils.close_session()
        yield hub
        huggingface_hub.utils.close_session()


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The client does not wait before it tries again, but says here for how long it would have."""
    seconds: list[float] = []
    monkeypatch.setattr("time.sleep", seconds.append)
    return seconds
