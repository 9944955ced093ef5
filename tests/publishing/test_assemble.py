"""What is taken out of a maintainer's folder: regular files in it, whatever else has their names."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from inhibidistilbert.modeling.sources import write_remote_code
from inhibidistilbert.publishing import regular
from inhibidistilbert.publishing.assemble import ALLOWED
from inhibidistilbert.publishing.card import CARD
from inhibidistilbert.support.errors import UserError
from tests.helpers.publishable import assembled

NAMES = ["LICENSE", CARD, "config.json", "distillation.json", "model.safetensors", "tokenizer.json", "vocab.txt", "cpu.json"]
posix = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege, pipes do not exist")


def link_to_a_file(path: Path) -> None:
    outside = path.parent.parent / "outside"
    outside.write_text("not for the world")
    path.symlink_to(outside)


def link_within_the_folder(path: Path) -> None:
    path.symlink_to("config.json.kept")


def link_to_a_folder(path: Path) -> None:
    path.symlink_to(path.parent.parent, target_is_directory=True)


def link_to_nowhere(path: Path) -> None:
    path.symlink_to("/nowhere/at/all")


def link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening_socket(path: Path) -> None:
    # The path of a socket has to be short.
    subprocess.run(
        [sys.executable, "-c", "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])", path.name],
        cwd=path.parent,
        check=True,
    )


def folder(path: Path) -> None:
    path.mkdir()


OTHERS = {
    link_to_a_file: "a symbolic link",
    link_within_the_folder: "a symbolic link",
    link_to_a_folder: "a symbolic link",
    link_to_nowhere: "a symbolic link",
    link_to_a_device: "a symbolic link",
    pipe: "a named pipe",
    listening_socket: "a socket",
    folder: "a folder",
}


@posix
class TestOnlyRegularFiles:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("make", [link_to_a_file, link_to_nowhere, pipe], ids=lambda make: make.__name__)
    def test_every_file_that_goes_out(self, name, make, checkpoint, tmp_path):
        (checkpoint / name).unlink(missing_ok=True)
        make(checkpoint / name)
        with pytest.raises(UserError, match=f"only regular files are published, not '{name}' \\({OTHERS[make]}\\)"):
            assembled(checkpoint, tmp_path / "assembled")

    @pytest.mark.parametrize("make", OTHERS, ids=lambda make: make.__name__)
    def test_every_kind(self, make, checkpoint, tmp_path):
        make(checkpoint / "LICENSE")
        with pytest.raises(UserError, match=f"'LICENSE' \\({OTHERS[make]}\\)"):
            assembled(checkpoint, tmp_path / "assembled")
        assert not (tmp_path / "assembled" / "LICENSE").exists()

    def test_a_device(self):
        with pytest.raises(UserError, match=r"'null' \(a device\)"):
            regular.refuse_others([Path("/dev/null")])

    def test_a_shard(self, checkpoint, tmp_path):
        link_to_a_file(checkpoint / "model-00001-of-00002.safetensors")
        with pytest.raises(UserError, match=r"'model-00001-of-00002\.safetensors' \(a symbolic link\)"):
            assembled(checkpoint, tmp_path / "assembled")

    def test_all_are_named(self, checkpoint, tmp_path):
        link_to_nowhere(checkpoint / "LICENSE")
        pipe(checkpoint / "vocab.txt")
        with pytest.raises(UserError, match=r"'LICENSE' \(a symbolic link\), 'vocab.txt' \(a named pipe\)"):
            assembled(checkpoint, tmp_path / "assembled")

    def test_the_cache_of_the_hub(self, checkpoint, tmp_path):
        """A snapshot there is a folder of links: it says how to get the files."""
        snapshot = tmp_path / "models--someone--tiny" / "snapshots" / "abc"
        blobs = snapshot.parent.parent / "blobs"
        snapshot.mkdir(parents=True)
        blobs.mkdir()
        for file in checkpoint.iterdir():
            shutil.copy(file, blobs / file.name)
            (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
        with pytest.raises(UserError, match=r"'config\.json' \(a symbolic link\).*hf download ORG/NAME --local-dir FOLDER"):
            assembled(snapshot, tmp_path / "assembled")

    @pytest.mark.parametrize("into", ["link", "pipe", "nothing"])
    def test_swapped_after_the_look(self, into, checkpoint, tmp_path, monkeypatch):
        secret, license_file = tmp_path / "outside", checkpoint / "LICENSE"
        secret.write_text("not for the world")
        license_file.write_text("free")

        def look_and_swap(files: list[Path]) -> None:
            if files == [license_file]:
                license_file.unlink()
                if into == "link":
                    license_file.symlink_to(secret)
                elif into == "pipe":
                    os.mkfifo(license_file)

        monkeypatch.setattr(regular, "refuse_others", look_and_swap)
        with pytest.raises(UserError, match="'LICENSE'"):
            regular.copy_regular(license_file, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()

    def test_swapped_between_name_and_file(self, tmp_path, monkeypatch):
        """Where the system cannot refuse links on opening, the open file tells."""
        secret, file = tmp_path / "outside", tmp_path / "LICENSE"
        secret.write_text("not for the world")
        file.write_text("free")
        real_open = os.open

        def swap_and_open(path, flags):
            file.unlink()
            file.symlink_to(secret)
            return real_open(path, os.O_RDONLY)

        monkeypatch.setattr(regular.os, "open", swap_and_open)
        with pytest.raises(UserError, match="'LICENSE' was replaced while it was read"):
            regular.copy_regular(file, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()


@posix
class TestWhatIsTaken:
    def test_a_link_to_the_folder_itself(self, checkpoint, tmp_path):
        (tmp_path / "by-another-name").symlink_to(checkpoint, target_is_directory=True)
        (tmp_path / "parent").symlink_to(tmp_path, target_is_directory=True)
        linked = assembled(tmp_path / "parent" / "by-another-name", tmp_path / "linked")
        assert linked.files.keys() == assembled(checkpoint, tmp_path / "plain").files.keys()

    def test_a_hard_link_is_a_file(self, checkpoint, tmp_path):
        (tmp_path / "terms").write_text("Apache License")
        os.link(tmp_path / "terms", checkpoint / "LICENSE")
        assert assembled(checkpoint, tmp_path / "assembled").files["LICENSE"].read_text() == "Apache License"

    def test_others_of_other_names_stay(self, checkpoint, tmp_path):
        """Named among what is left out, and neither followed nor waited for."""
        link_to_a_folder(checkpoint / ".eval_results")
        link_to_a_file(checkpoint / "notes.txt")
        pipe(checkpoint / "events.fifo")
        (checkpoint / "runs").mkdir()
        link_to_nowhere(checkpoint / "runs" / "LICENSE")
        candidate = assembled(checkpoint, tmp_path / "assembled")
        assert {".eval_results", "notes.txt", "events.fifo", "runs/LICENSE"} <= set(candidate.left_out)
        assert not any(path.is_symlink() for path in candidate.folder.rglob("*"))
        assert "LICENSE" not in candidate.files

    def test_every_name_is_tried(self):
        assert set(NAMES) - {CARD} <= set(ALLOWED)

    def test_source_files_are_not_written_through_links(self, tmp_path):
        victims = [tmp_path / "victim", tmp_path / "other"]
        model = tmp_path / "model"
        model.mkdir()
        for victim, name in zip(victims, ("inhibitor_masks.py", "inhibitor_masks.py.tmp"), strict=True):
            victim.write_text("mine")
            (model / name).symlink_to(victim)
        write_remote_code(model)
        assert [victim.read_text() for victim in victims] == ["mine", "mine"]
        assert not (model / "inhibitor_masks.py").is_symlink()
        assert not (model / "inhibitor_masks.py.tmp").exists()
