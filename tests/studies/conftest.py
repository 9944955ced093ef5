"""What every test of a study gets: what those of distillation get, and no way to fetch anything."""

import subprocess

import pytest

from tests.distillation.conftest import no_pictures, one_thread, own_cache, toy  # noqa: F401 - fixtures


@pytest.fixture
def no_download(monkeypatch):
    def run(*arguments, **_):
        raise AssertionError(f"would run {arguments}")

    monkeypatch.setattr(subprocess, "run", run)
