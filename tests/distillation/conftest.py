"""What every test of distillation gets: a cache of its own, and a toy task with a teacher and a student to train."""

from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import torch

from inhibidistilbert.distillation import work_folder
from tests.helpers.toy_task import write_toy_task


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what `datasets` caches below the folder of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets_cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models are quickest on one thread, and give the same bits on every run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes a quarter of a toy run. Runs that a whole module shares, made before this, do draw."""
    monkeypatch.setattr(work_folder, "draw_curves", lambda records, file: file.touch())


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the toy task; see `write_toy_task`. Tests leave it as it is."""
    return write_toy_task(tmp_path_factory.mktemp("toy"))
