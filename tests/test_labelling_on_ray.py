"""`predict --engine ray` on a cluster of two processes here: `make test-ray`, which installs Ray."""

import json
import os
import signal
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from inhibidistilbert import cli
from inhibidistilbert.commands import predict as command
from inhibidistilbert.labelling import Labeller, Settings
from inhibidistilbert.labelling_on_ray import label_on_ray
from tests.helpers.tiny_sentiment import write_tiny_checkpoint

FILES, ROWS = 6, 20


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    write_tiny_checkpoint(tmp_path / "model")
    for number in range(FILES):
        lines = [f"good film {number} {row}" for row in range(ROWS)]
        (tmp_path / "in" / f"{number}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def line_then_die(prediction, marker: Path) -> str:
    """The worker that comes first to the middle of the third file is killed, once."""
    if prediction.text == "good film 2 10":
        try:
            marker.touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return command.json_line(prediction)


@pytest.mark.slow
def test_a_killed_worker_loses_nothing_and_doubles_nothing(cluster, folder):
    marker = folder / "killed"
    label = Labeller(folder / "model", folder / "out", Settings(), partial(line_then_die, marker=marker), "cpu")
    label.prepare()
    shards = list(label_on_ray(label, sorted((folder / "in").iterdir())))
    assert marker.exists()
    assert [shard.rows for shard in shards] == [ROWS] * FILES
    texts = Counter(
        json.loads(line)["text"] for file in (folder / "out").glob("[0-9]*.jsonl") for line in file.read_text().splitlines()
    )
    assert texts == Counter(f"good film {number} {row}" for number in range(FILES) for row in range(ROWS))


@pytest.mark.slow
def test_the_command_and_the_same_without_the_engine(cluster, folder, monkeypatch, capsys):
    for engine, told in (
        (["--engine", "ray"], "0 of them kept"),
        ([], "6 of them kept"),
        (["--engine", "ray"], "6 of them kept"),
    ):
        given = ["--data", folder / "in", "--output", folder / "out", "--model", folder / "model", *engine]
        monkeypatch.setattr(sys, "argv", ["inhibidistilbert", "predict", *map(str, given)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert not exit_.value.code
        assert told in capsys.readouterr().err


def test_without_ray(folder, monkeypatch, capsys):
    monkeypatch.setattr("inhibidistilbert.support.packages.find_spec", lambda name: None)
    given = ["--data", folder / "in", "--output", folder / "out", "--engine", "ray"]
    for engine, told in (
        ("ray", "--engine ray needs ray: pip install 'ray[data]'"),
        ("spark", "--engine must be ray, got 'spark'"),
    ):
        monkeypatch.setattr(sys, "argv", ["inhibidistilbert", "predict", *map(str, [*given, "--engine", engine])])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert (exit_.value.code, told in capsys.readouterr().err) == (2, True)
