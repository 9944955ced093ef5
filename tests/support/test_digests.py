"""Digests of files, which are read again whenever they may hold something else."""

import hashlib
import os
from pathlib import Path

import pytest

from inhibidistilbert.support import digests
from inhibidistilbert.support.digests import SEAL, damage, read_seal, seal

COMMIT = "0123456789" * 4


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The files that were read."""
    read, names = hashlib.file_digest, []
    monkeypatch.setattr(digests.hashlib, "file_digest", lambda file, kind: names.append(file.name) or read(file, kind))
    return names


def test_other_bytes_of_the_same_size_and_time_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "_SETTLED", -1)  # as if it had been written long ago
    file = tmp_path / "a.csv"
    for content in (b"one", b"two"):
        file.write_bytes(content)
        os.utime(file, (1e9, 1e9))
        assert digests.sha256(file) == hashlib.sha256(content).hexdigest()


def test_a_file_that_rests_is_read_once(tmp_path, monkeypatch, reads):
    monkeypatch.setattr(digests, "_SETTLED", -1)
    file = tmp_path / "a.csv"
    file.write_bytes(b"one")
    assert len({digests.sha256(file) for _ in range(3)}) == len(reads) == 1


def test_a_file_that_was_just_written_is_read_again(tmp_path, reads):
    """Another change may follow within the same tick of the clock."""
    file = tmp_path / "a.csv"
    file.write_bytes(b"one")
    digests.sha256(file)
    digests.sha256(file)
    assert len(reads) == 2


def test_a_relative_name_is_of_the_folder_at_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "_SETTLED", -1)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        monkeypatch.chdir(tmp_path / name)
        assert digests.sha256(Path("file")) == hashlib.sha256(name.encode()).hexdigest()


# Models


@pytest.fixture
def model(tmp_path) -> Path:
    """A folder as the Hub's cache has it."""
    folder = tmp_path / "models--org--name/snapshots" / COMMIT
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "vocab.txt", "modeling.py"):
        (folder / name).write_text(name)
    return folder


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.txt", "modeling.py"])
def test_each_part_of_a_model_decides(model, name):
    before = digests.content_of(str(model), model=True)
    (model / name).write_text(name[::-1])
    assert digests.change(before, digests.content_of(str(model), model=True)) == f"{name} held something else"
    (model / name).unlink()
    assert digests.change(before, digests.content_of(str(model), model=True)) == f"{name} held something else"


@pytest.mark.parametrize("name", ["README.md", "distillation.json", "eval_results.json", "onnx/model.json"])
def test_what_is_told_about_a_model_does_not_decide(model, name):
    before = digests.content_of(str(model), model=True)
    (model / "onnx").mkdir()
    (model / name).write_text("told")
    assert digests.content_of(str(model), model=True) == before


def test_a_model_of_the_hub_is_known_by_its_commit(model, monkeypatch):
    """And a folder of that commit, in the cache of the Hub, is that model."""
    monkeypatch.setattr(digests, "cached_file", lambda source, name: str(model / name))
    of_hub, local = digests.content_of("org/name", model=True), digests.content_of(str(model), model=True)
    assert of_hub == {"commit": COMMIT}
    assert digests.change(of_hub, local) is None
    assert digests.change(of_hub, {"commit": "f" * 40}) == f"it was at commit {COMMIT}"
    assert digests.change(of_hub, {"files": local["files"]}) == f"it was at commit {COMMIT}"


def test_a_file_is_never_looked_for_on_the_hub(monkeypatch):
    monkeypatch.setattr(digests, "cached_file", lambda *_: pytest.fail("asked the Hub"))
    assert digests.content_of("missing.csv", model=False) == {}


def test_damage_of_a_sealed_folder_is_found(tmp_path):
    (tmp_path / "part").mkdir()
    file = tmp_path / "part" / "weights"
    file.write_bytes(b"weights")
    seal(tmp_path, processes=2)
    assert damage(tmp_path) is None
    assert read_seal(tmp_path)["processes"] == 2
    file.write_bytes(b"garbled")
    assert damage(tmp_path) == "lacks part/weights as it was written"
    file.write_bytes(b"short")
    assert damage(tmp_path) == "lacks part/weights"
    file.unlink()
    assert damage(tmp_path) == "lacks part/weights"


def test_a_seal_of_earlier_versions_has_sizes_alone(tmp_path):
    (tmp_path / "weights").write_bytes(b"weights")
    (tmp_path / SEAL).write_text('{"files": {"weights": 7}}')
    assert damage(tmp_path) is None
    (tmp_path / SEAL).write_text('{"files": {"weights": 8}}')
    assert damage(tmp_path) == "lacks weights"


@pytest.mark.parametrize("text", ["", "null", "[]", '{"files": {}}', '{"files": {"weights": null}}', "[" * 100_000, "\0"])
def test_a_seal_that_is_none_is_damage(tmp_path, text):
    (tmp_path / SEAL).write_text(text)
    assert damage(tmp_path) == "lacks parts.json"
