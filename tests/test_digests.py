"""Digests of files, which are read again whenever they may hold something else."""

import hashlib
import os
from pathlib import Path

import pytest

from inhibidistilbert import digests


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
