"""Resumed and cached work fits the files and models it was made from, or the run stops and says which does not."""

import contextlib
import hashlib
import json
import logging
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pytest
from safetensors.torch import load_file, save_file
from transformers import DistilBertModel

from inhibidistilbert.distillation import checkpoints, inputs, run, training
from inhibidistilbert.distillation.checkpoints import last_checkpoint
from inhibidistilbert.distillation.recipe import Recipe, read_recipe
from inhibidistilbert.distillation.run import run_recipe
from inhibidistilbert.distillation.tasks import Classification
from inhibidistilbert.distillation.trainer import StageTrainer
from inhibidistilbert.support import digests
from inhibidistilbert.support.digests import SEAL
from inhibidistilbert.support.errors import UserError
from tests.helpers.toy_recipe import three_stages
from tests.helpers.toy_task import sentences, write_csv, write_distilbert


@pytest.fixture(scope="module")
def place(toy, tmp_path_factory) -> Path:
    """The toy's files, a teacher, and what both came from, in a folder that tests copy and change."""
    folder = tmp_path_factory.mktemp("place") / "place"
    shutil.copytree(toy, folder)
    write_distilbert(folder / "teacher", initializer_range=0.3)
    write_distilbert(folder / "base", DistilBertModel, initializer_range=0.3)
    return folder


def all_stages(place: Path, *changes: str, **given) -> Recipe:
    return three_stages(place, place / "teacher", *changes, **given)


def task(place: Path, *changes: str) -> Recipe:
    """The task alone, with every kind of file and model."""
    files = [f"data.transfer_files=[{place / 'transfer.txt'}]", f"data.eval_file={place / 'eval.csv'}"]
    models = [
        f"task.teacher_base={place / 'base'}",
        f"student.source={place / 'start'}",
        "student.config.scalars_per_head=false",
    ]
    return all_stages(place, *files, *models, *changes, stage="task")


@contextlib.contextmanager
def at_step(stage: str, step: int, do: Callable[[], None]) -> Iterator[None]:
    """`do` before a step is taken."""

    class Watched(StageTrainer):
        def training_step(self, *args, **kwargs):
            if (self.stage, self.state.global_step) == (stage, step):
                do()
            return super().training_step(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "StageTrainer", Watched)
        yield


def stop() -> None:
    raise KeyboardInterrupt


def stopped(recipe: Recipe, output: Path, stage: str, step: int) -> None:
    with at_step(stage, step, stop), pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, output)


def first_step(recipe: Recipe, output: Path) -> int:
    """The one that a run begins with, and is stopped at."""
    seen = []

    class Watched(StageTrainer):
        def training_step(self, *args, **kwargs):
            seen.append(self.state.global_step)
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "StageTrainer", Watched)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, output)
    return seen[0]


@pytest.fixture(scope="module")
def begun(place) -> Path:
    """A folder of files, models and the work of a task on them, stopped at step 10; its checkpoints are of 4 and 8."""
    stopped(task(place), place / "out", "task", 10)
    return place


@pytest.fixture
def copied(begun, tmp_path) -> Path:
    """`begun` elsewhere: everything has another name and the same content."""
    shutil.copytree(begun, tmp_path / "copied")
    return tmp_path / "copied"


def replace(file: Path, old: bytes, new: bytes) -> None:
    """Other bytes, as many, at the same time as before."""
    status, content = file.stat(), file.read_bytes()
    assert len(old) == len(new)
    assert old in content
    file.write_bytes(content.replace(old, new, 1))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def change_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


CHANGES = {
    "train": (lambda place: replace(place / "train.csv", b"film", b"plot"), r"--train-file .*train\.csv"),
    "transfer": (lambda place: replace(place / "transfer.txt", b"film", b"plot"), r"--transfer-file .*transfer\.txt"),
    "eval": (lambda place: replace(place / "eval.csv", b"film", b"plot"), r"--eval-file .*eval\.csv"),
    "teacher's weights": (lambda place: change_weights(place / "teacher"), r"--teacher: .*teacher' .*model\.safetensors"),
    "teacher's words": (lambda place: replace(place / "teacher/tokenizer.json", b"film", b"folm"), r"tokenizer\.json"),
    "teacher's configuration": (
        lambda place: replace(place / "teacher/config.json", b"gelu", b"relu"),
        r"--teacher: .*config\.json",
    ),
    "student": (lambda place: change_weights(place / "start"), r"--student .*start' .*model\.safetensors"),
    "teacher's base": (lambda place: change_weights(place / "base"), r"task\.teacher_base: .*base' .*model\.safetensors"),
    "one file less": (lambda place: None, r"--transfer-file \(data\.transfer_files\) is none, it was '.*transfer\.txt'"),
    "no record": (lambda place: (place / "out.work/task/inputs.json").unlink(), r"task' has no inputs\.json"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_going_on_from_other_content_is_refused(copied, change):
    do, message = CHANGES[change]
    do(copied)
    before = tree(copied)
    recipe = task(copied, *(["data.transfer_files=[]"] if change == "one file less" else []))
    with pytest.raises(UserError, match=message) as caught:
        run_recipe(recipe, copied / "out")
    assert "\n" not in str(caught.value)
    assert f"remove '{copied / 'out.work'}', or give another OUTPUT_DIR" in str(caught.value)
    assert tree(copied) == before


@pytest.fixture(scope="module")
def resumed(begun, tmp_path_factory) -> tuple[Path, list[str]]:
    """`begun`, finished under other names, with another file of tests, by other versions, and what was told of it.

    Before that it was refused with other content, which was then put back.
    """
    folder, told = tmp_path_factory.mktemp("resumed") / "place", []
    shutil.copytree(begun, folder)
    replace(folder / "train.csv", b"film", b"plot")
    with pytest.raises(UserError, match="--train-file"):
        run_recipe(task(folder), folder / "out")
    shutil.copyfile(begun / "train.csv", folder / "train.csv")
    write_csv(folder / "test.csv", sentences(7, seed=7))
    edit_json(folder / "out.work/task/checkpoint-8" / SEAL, processes=2)
    edit_json(folder / "out.work/task/inputs.json", environments=[{"torch": "1.0", "processes": 2}])
    with pytest.MonkeyPatch.context() as patch:
        for module in (inputs, checkpoints):
            patch.setattr(module.logger, "warning", lambda message, *values: told.append(message % values))
        run_recipe(task(folder), folder / "out")
    return folder, told


def edit_json(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def log_of(folder: Path) -> dict:
    return json.loads((folder / "out/distillation.json").read_text())


def sha256_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_log_tells_both_names_of_a_file(begun, resumed):
    folder, _ = resumed
    log = log_of(folder)
    (then,) = log["stages"]["task"]["inputs"]["--train-file (data.train_files)"]
    (now,) = log["recipe"]["data"]["train_files"]
    assert (then["path"], now) == (str(begun / "train.csv"), str(folder / "train.csv"))
    assert then["sha256"] == log["data"][now]["sha256"] == sha256_of(begun / "train.csv")


def test_test_files_may_change_and_the_log_says_what_was_used(resumed):
    folder, _ = resumed
    log = log_of(folder)
    (scores,) = log["tests"]["student"].values()
    assert scores["texts"] == 7
    assert log["data"][str(folder / "test.csv")]["sha256"] == sha256_of(folder / "test.csv")


def test_other_versions_and_numbers_of_processes_are_told_and_recorded(resumed):
    folder, (versions, processes) = resumed
    log = log_of(folder)
    assert f"torch {log['versions']['torch']} (before: 1.0)" in versions
    assert "checkpoint-8 is of 2 processes, this run has 1" in processes
    assert [run["processes"] for run in log["stages"]["task"]["environments"]] == [2, 1]


def test_a_finished_one_is_that_of_its_files_and_models_only(resumed):
    """As is a teacher that was fine-tuned first."""
    folder, _ = resumed
    recipe, before = task(folder), tree(folder)
    assert run_recipe(recipe, folder / "out") == log_of(folder)
    for change, name in (("train", "train.csv"), ("eval", "eval.csv"), ("teacher's weights", "teacher/model.safetensors")):
        do, message = CHANGES[change]
        do(folder)
        with pytest.raises(UserError, match=rf"{message}.* when '.*out' was made: put it back, remove"):
            run_recipe(recipe, folder / "out")
        (folder / name).write_bytes(before[name])
    write_csv(folder / "test.csv", sentences(9, seed=9))
    with pytest.raises(UserError, match=r"--test-file .*test\.csv' has changed"):
        run_recipe(recipe, folder / "out")
    (folder / "test.csv").write_bytes(before["test.csv"])
    assert tree(folder) == before


def test_what_nothing_was_trained_on_is_made_anew(place, tmp_path):
    shutil.copytree(place, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("out*"))
    recipe, labelled = task(tmp_path), tmp_path / "out.work/task/labelled"
    stopped(recipe, tmp_path / "out", "task", 0)
    before = datasets.load_from_disk(str(labelled)).to_list()
    replace(tmp_path / "train.csv", b"film", b"plot")
    change_weights(tmp_path / "teacher")
    stopped(recipe, tmp_path / "out", "task", 5)
    assert datasets.load_from_disk(str(labelled)).to_list() != before
    (record,) = json.loads((labelled.parent / "inputs.json").read_text())["inputs"]["--train-file (data.train_files)"]
    assert record["sha256"] == sha256_of(tmp_path / "train.csv")


@pytest.mark.parametrize("name", ["train", "transfer", "eval", "test"])
def test_a_file_that_changes_while_it_is_read_is_noticed(place, tmp_path, monkeypatch, name):
    shutil.copytree(place, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("out*"))
    (file,) = tmp_path.glob(f"{name}.*")

    def changing(read: Callable) -> Callable:
        def then_change(kind: Classification, files: list[str], argument: str) -> datasets.Dataset:
            rows = read(kind, files, argument)
            if str(file) in files:
                replace(file, b"film", b"plot")
            return rows

        return then_change

    for method in ("read", "read_unlabelled"):
        monkeypatch.setattr(Classification, method, changing(getattr(Classification, method)))
    with pytest.raises(UserError, match=rf"{name}\.\w+' has changed during the run"):
        run_recipe(task(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out.work/task").exists()


# What is read while a stage is trained


@pytest.mark.parametrize(("saving", "kept"), [("steps", ["checkpoint-4"]), ("no", [])])
def test_texts_that_change_while_they_are_trained_on_stop_the_run(place, tmp_path, saving, kept):
    """Before anything is stored that was trained on both."""
    shutil.copytree(place, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("out*"))
    recipe = all_stages(tmp_path, f"trainer.save_strategy='{saving}'", "align.max_steps=6", stage="align")
    before = (tmp_path / "transfer.txt").read_bytes()
    change = at_step("align", 5, lambda: replace(tmp_path / "transfer.txt", b"film", b"plot"))
    with change, pytest.raises(UserError, match=r"--text-file .*transfer\.txt' has changed during the run"):
        run_recipe(recipe, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out.work/align").glob("checkpoint-*")) == kept
    assert not (tmp_path / "out.work/align/model").exists()
    if kept:
        with pytest.raises(UserError, match=r"--text-file .*transfer\.txt' has changed, .* when .*align' was made"):
            run_recipe(recipe, tmp_path / "out")
    (tmp_path / "transfer.txt").write_bytes(before)
    assert first_step(recipe, tmp_path / "out") == (4 if kept else 0)


def test_a_teacher_that_changes_between_stages_stops_the_run(place, tmp_path):
    shutil.copytree(place, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("out*"))
    message = r"--teacher: .*teacher' has changed during the run, model\.safetensors"
    with at_step("align", 1, lambda: change_weights(tmp_path / "teacher")), pytest.raises(UserError, match=message):
        run_recipe(all_stages(tmp_path, "align.max_steps=2"), tmp_path / "out")
    assert (tmp_path / "out.work/align/model").is_dir()
    assert not (tmp_path / "out.work/pretrain").exists()


def test_a_stage_goes_on_from_the_student_it_was_begun_with_only(place, tmp_path, monkeypatch):
    """And of all three stages each model is read once for its digest."""
    monkeypatch.setattr(digests, "_SETTLED", -1)
    digest, read = hashlib.file_digest, []
    monkeypatch.setattr(digests.hashlib, "file_digest", lambda file, kind: read.append(file.name) or digest(file, kind))
    shutil.copytree(place, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("out*"))
    recipe = all_stages(tmp_path, "align.max_steps=2", "pretrain.max_steps=2")
    stopped(recipe, tmp_path / "out", "task", 5)
    weights = [name for name in read if name.endswith("model.safetensors") and "checkpoint-" not in name]
    assert len(weights) == len(set(weights)) == 3  # the teacher's, and those of the two stages before the last
    change_weights(tmp_path / "out.work/pretrain/model")
    edit_json(tmp_path / "out.work/pretrain/result.json", model=None)  # as if it was trained again
    with pytest.raises(UserError, match=r"the student of the stage before: 'pretrain/model' .* when '.*task' was made"):
        run_recipe(recipe, tmp_path / "out")


# Checkpoints


@pytest.mark.parametrize(
    "part", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "model.safetensors", SEAL]
)
@pytest.mark.parametrize("how", [Path.unlink, lambda file: os.truncate(file, file.stat().st_size // 2)], ids=["gone", "cut"])
def test_a_checkpoint_that_lacks_a_part_is_passed_over(copied, caplog, part, how):
    folder = copied / "out.work/task"
    assert last_checkpoint(folder) == str(folder / "checkpoint-8")
    assert caplog.messages == []
    how(folder / "checkpoint-8" / part)
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(folder) == str(folder / "checkpoint-4")
    assert caplog.messages == [f"checkpoint-8 lacks {part}: going on from {folder / 'checkpoint-4'} instead."]


def garble(file: Path) -> None:
    """Other bytes, as many, such as a failing disk gives."""
    file.write_bytes(random.Random(0).randbytes(file.stat().st_size))


def put_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES = {
    "garbled": garble,
    "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file: os.truncate(file, 0),
    "gone": Path.unlink,
    "a-folder": put_folder,
    "null": lambda file: file.write_text("null"),
    "list": lambda file: file.write_text("[[]]"),
    "object": lambda file: file.write_text(
        '{"inputs": 1, "files": {"model.safetensors": null}, "environments": [], "data": 7}'
    ),
}


def contents(work: Path, damaged: str) -> dict[Path, bytes]:
    """But for what each run writes anew: the curve, from the checkpoint; the options, with the names of this time."""
    renewed = {"curves.jsonl", "recipe.json"} - {damaged}
    return {path: path.read_bytes() for path in work.rglob("*") if path.is_file() and path.name not in renewed}


def after_damage(folder: Path, name: str, how: str, log: pytest.LogCaptureFixture, run: Callable[[], object]) -> object:
    """What `run` comes to after a damage of a file in the work folder; None where it refuses and names it.

    What goes on without the file names it too, but for a checkpoint that is not the last, which is not needed.
    """
    work = folder / "out.work"
    DAMAGES[how](work / name)
    before, refusal, result = contents(work, name), "", None
    log.clear()
    try:
        with log.at_level(logging.WARNING):
            result = run()
    except UserError as error:
        refusal = str(error)
    if refusal:
        assert contents(work, name) == before
    assert "\n" not in refusal
    if "checkpoint-4" not in name and not (name.endswith("curves.jsonl") and isinstance(result, int)):
        assert Path(name).name in refusal + log.text
    return result


def check_resumed(begun: Path, folder: Path, name: str, how: str, log: pytest.LogCaptureFixture) -> None:
    shutil.copytree(begun, folder)
    step = after_damage(folder, name, how, log, lambda: first_step(task(folder), folder / "out"))
    needed = name in ("recipe.json", "task/inputs.json") or (name == "task/curves.jsonl" and how == "a-folder")
    assert step == (None if needed else 4 if "checkpoint-8" in name else 8)


def check_ended(finished: Path, folder: Path, name: str, how: str, log: pytest.LogCaptureFixture) -> None:
    shutil.copytree(finished, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageTrainer, "training_step", lambda *_, **__: pytest.fail("a step was taken"))
        done = after_damage(folder, name, how, log, lambda: run_recipe(task(folder), folder / "out"))
    needed = "/model/" in name or name in ("recipe.json", "task/inputs.json")
    assert (done is None) == needed
    model = "model.safetensors"
    assert needed or (folder / "out" / model).read_bytes() == (finished / "out.work/task/model" / model).read_bytes()


def work_files(folder: Path) -> list[str]:
    work = folder / "out.work"
    return sorted(path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def finished(begun, tmp_path_factory) -> Path:
    """`begun`, with all trained, but nothing yet in its place."""
    folder = tmp_path_factory.mktemp("finished") / "finished"
    shutil.copytree(begun, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "finish", lambda *_: stop())
        with pytest.raises(KeyboardInterrupt):
            run_recipe(task(folder), folder / "out")
    return folder


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("recipe.json", "garbled"),
        ("task/inputs.json", "object"),
        ("task/checkpoint-8/optimizer.pt", "garbled"),
        ("task/labelled/data-00000-of-00001.arrow", "garbled"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_lost(begun, tmp_path, caplog, name, how):
    check_resumed(begun, tmp_path / "copied", name, how, caplog)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("task/result.json", "gone"),
        ("task/model/model.safetensors", "garbled"),
    ],
)
def test_a_damaged_file_of_a_finished_stage_is_named(finished, tmp_path, caplog, name, how):
    check_ended(finished, tmp_path / "copied", name, how, caplog)


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGES)
def test_every_damage_of_every_file(begun, finished, tmp_path, caplog, how):
    for number, name in enumerate(work_files(begun)):
        check_resumed(begun, tmp_path / f"resumed-{number}", name, how, caplog)
    for number, name in enumerate(work_files(finished)):
        if "/labelled/" not in name:  # not read any more
            check_ended(finished, tmp_path / f"ended-{number}", name, how, caplog)


def test_a_work_folder_that_is_removed_meanwhile_is_named(copied):
    with (
        at_step("task", 10, lambda: shutil.rmtree(copied / "out.work")),
        pytest.raises(
            UserError, match=r"OUTPUT_DIR: '.*out\.work' cannot be written: .*curves\.jsonl'.*: .*put back"
        ) as caught,
    ):
        run_recipe(task(copied), copied / "out")
    assert "\n" not in str(caught.value)


def test_without_its_moments_the_training_goes_back_to_where_it_had_them(copied):
    (copied / "out.work/task/checkpoint-8/optimizer.pt").unlink()
    assert first_step(task(copied), copied / "out") == 4


def test_without_a_whole_checkpoint_nothing_begins_anew(copied):
    folder = copied / "out.work/task"
    for checkpoint in folder.glob("checkpoint-*"):
        (checkpoint / "optimizer.pt").unlink()
    before = {checkpoint: tree(checkpoint) for checkpoint in folder.glob("checkpoint-*")}
    with pytest.raises(UserError, match=rf"no checkpoint in '{folder}' is whole \(checkpoint-8 lacks optimizer\.pt; check"):
        run_recipe(task(copied), copied / "out")
    assert {checkpoint: tree(checkpoint) for checkpoint in folder.glob("checkpoint-*")} == before


def test_hosts_must_find_the_same_files(toy, monkeypatch):
    """The second host's copy differs."""
    other = {str(toy / "train.csv"): {"sha256": "another"}}
    monkeypatch.setattr(inputs, "gather_object", lambda mine: [*mine, None, mine[0] | other])
    recipe = read_recipe("finetune", student__source=str(toy / "encoder"), data__train_files=[str(toy / "train.csv")])
    with pytest.raises(UserError, match=r"train\.csv' is not the same on all hosts"):
        inputs.Inputs.look(recipe, Path("out.work"))
