"""A distillation from files to a loadable folder, on a toy task, whole and in pieces."""

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import torch
import transformers
from safetensors.torch import load_file
from toy_task import POSITIONS, VOCABULARY, sentences, tiny_student, write_bert, write_csv, write_distilbert
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from inhibidistilbert import InhibiDistilBertForSequenceClassification, cli
from inhibidistilbert.distillation import pipeline
from inhibidistilbert.distillation.pipeline import Distillation, TrainingOptions, distill
from inhibidistilbert.distillation.trainer import ClassifierTrainer
from inhibidistilbert.errors import UserError
from inhibidistilbert.modeling.remote_code import source_files

SAVE_STEPS = 20
TEACHER_STEPS = 5 * math.ceil(400 / 32)
STUDENT_STEPS = 5 * math.ceil(600 / 32)


def toy_options(toy: Path, output: Path, **changes) -> Distillation:
    """Five epochs for the teacher and five for the student, which both learn the task in."""
    options = Distillation(
        output_dir=output,
        teacher=str(toy / "encoder"),
        student=str(toy / "start"),
        train_files=[toy / "train.csv"],
        transfer_files=[toy / "transfer.txt"],
        eval_file=toy / "eval.csv",
        test_files=[toy / "test.csv"],
        labels=["BAD", "GOOD"],
        fine_tune_teacher=True,
        teacher_training=TrainingOptions(5, 3e-3, 32, 16),
        student_training=TrainingOptions(5, 3e-3, 32, 12),
        save_steps=SAVE_STEPS,
    )
    return dataclasses.replace(options, **changes)


def as_arguments(options: Distillation) -> list[str]:
    """The command line of `toy_options` without changes."""
    teacher, student = options.teacher_training, options.student_training
    pairs = {
        "--teacher": options.teacher,
        "--student": options.student,
        "--train-file": options.train_files[0],
        "--transfer-file": options.transfer_files[0],
        "--eval-file": options.eval_file,
        "--test-file": options.test_files[0],
        "--teacher-epochs": teacher.epochs,
        "--teacher-learning-rate": teacher.learning_rate,
        "--teacher-batch-size": teacher.batch_size,
        "--teacher-max-length": teacher.max_length,
        "--epochs": student.epochs,
        "--learning-rate": student.learning_rate,
        "--batch-size": student.batch_size,
        "--max-length": student.max_length,
        "--save-steps": options.save_steps,
    }
    flat = [str(word) for pair in pairs.items() for word in pair]
    return [str(options.output_dir), *flat, "--label", "BAD", "--label", "GOOD", "--fine-tune-teacher", "--json"]


@dataclasses.dataclass
class Finished:
    """A distillation that has ended: its options, what it printed to stdout, and its log."""

    options: Distillation
    stdout: str

    @property
    def folder(self) -> Path:
        return self.options.output_dir

    @property
    def log(self) -> dict:
        return json.loads((self.folder / "distillation.json").read_text())


@pytest.fixture(scope="module")
def finished(toy, tmp_path_factory) -> Finished:
    """The whole distillation in one go, from the command line."""
    options = toy_options(toy, tmp_path_factory.mktemp("finished") / "out")
    stdout = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(stdout):
        patch.setattr(sys, "argv", ["inhibidistilbert", "distill", *as_arguments(options)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
    assert not exit_.value.code
    return Finished(options, stdout.getvalue())


# The result


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_teacher_and_student_learn_the_task(finished, role):
    assert finished.log["metrics"][role]["accuracy"] > 0.9
    (test,) = finished.log["tests"][role].values()
    assert test["accuracy"] > 0.9
    assert test["texts"] == 60


def test_the_folder_loads_and_answers(finished, toy):
    model = InhibiDistilBertForSequenceClassification.from_pretrained(finished.folder)
    tokenizer = AutoTokenizer.from_pretrained(finished.folder)
    texts, labels = zip(*sentences(60, seed=60), strict=True)
    inputs = tokenizer(list(texts), padding=True, return_tensors="pt")
    answers = model.eval()(**inputs).logits.argmax(-1)
    accuracy = (answers == torch.tensor(labels)).double().mean().item()
    assert accuracy == pytest.approx(finished.log["tests"]["student"][str(toy / "test.csv")]["accuracy"])
    assert isinstance(AutoModelForSequenceClassification.from_pretrained(finished.folder), type(model))


def test_the_folder_has_the_labels_names(finished):
    config = json.loads((finished.folder / "config.json").read_text())
    assert config["id2label"] == {"0": "BAD", "1": "GOOD"}
    assert config["label2id"] == {"BAD": 0, "GOOD": 1}


def test_the_folder_has_the_tokenizer_of_the_students_positions(finished):
    tokenizer = AutoTokenizer.from_pretrained(finished.folder)
    assert tokenizer.model_max_length == POSITIONS
    assert set(tokenizer("a good film")) == {"input_ids", "attention_mask"}
    assert len(tokenizer("a good film " * 5)["input_ids"]) == 17


def test_the_folder_holds_the_model_and_nothing_of_the_work(finished):
    names = {path.name for path in finished.folder.iterdir()}
    sources = {path.name for path in source_files()}
    model = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert names == {"distillation.json"} | sources | model


def test_the_log_says_how_it_was_made(finished, toy):
    log = finished.log
    assert log["options"] == finished.options.as_json()
    files = [toy / name for name in ("train.csv", "transfer.txt", "eval.csv", "test.csv")]
    assert log["data"] == {
        str(path): {"bytes": len(path.read_bytes()), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in files
    }
    assert log["texts"] == {"labelled": 400, "all": 600}
    assert log["versions"] == {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "datasets": datasets.__version__,
    }


def test_json_prints_the_log_alone(finished):
    """Not the Trainer's progress, which it prints to stdout."""
    assert json.loads(finished.stdout) == finished.log
    assert finished.stdout.count("\n") == 1


def test_the_student_has_trained_its_scalars(finished):
    scalars = {
        name: weight
        for name, weight in load_file(finished.folder / "model.safetensors").items()
        if name.endswith((".alpha", ".beta", ".gamma"))
    }
    started = tiny_student().state_dict()
    assert len(scalars) == 6
    assert all(not torch.equal(weight, started[name]) for name, weight in scalars.items())


# Interrupted and resumed


@dataclasses.dataclass
class Steps:
    """Which steps a Trainer took, by the name of its folder; it stops before `stop`, a folder and a step."""

    taken: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    trainers: dict[str, ClassifierTrainer] = dataclasses.field(default_factory=dict)
    stop: tuple[str, int] | None = None


@contextlib.contextmanager
def watched_steps(stop: tuple[str, int] | None = None) -> Iterator[Steps]:
    steps = Steps(stop=stop)

    class Watched(ClassifierTrainer):
        def training_step(self, *args, **kwargs):
            place = Path(self.args.output_dir).name, self.state.global_step
            if place == steps.stop:
                raise KeyboardInterrupt
            steps.taken.setdefault(place[0], []).append(place[1])
            steps.trainers[place[0]] = self
            return super().training_step(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "ClassifierTrainer", Watched)
        yield steps


@dataclasses.dataclass
class Resumed:
    """The same distillation as `finished`, interrupted three times: the steps of its four runs."""

    options: Distillation
    runs: list[dict[str, list[int]]]


@pytest.fixture(scope="module")
def resumed(toy, tmp_path_factory) -> Resumed:
    options = toy_options(toy, tmp_path_factory.mktemp("resumed") / "out")
    runs = []

    def run(stop: tuple[str, int] | None, resume: bool) -> None:
        with watched_steps(stop) as steps:
            runs.append(steps.taken)
            distill(options, resume)

    def half_written(_: datasets.Dataset, folder: str) -> None:
        Path(folder).mkdir()
        Path(folder, "data-00000-of-00001.arrow").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(stop=("teacher_training", 33), resume=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.Dataset, "save_to_disk", half_written)
        with pytest.raises(KeyboardInterrupt):
            run(stop=None, resume=True)
    with pytest.raises(KeyboardInterrupt):
        run(stop=("student", 50), resume=True)
    assert not options.output_dir.exists()
    # As if stopped while a checkpoint was written.
    (options.work_dir / "student" / "checkpoint-60").mkdir()
    run(stop=None, resume=True)
    return Resumed(options, runs)


def test_every_training_goes_on_from_its_last_checkpoint(resumed):
    assert resumed.runs == [
        {"teacher_training": list(range(33))},
        # The teacher from its checkpoint; stopped while the labelled texts were written.
        {"teacher_training": list(range(20, TEACHER_STEPS))},
        {"student": list(range(50))},
        {"student": list(range(40, STUDENT_STEPS))},
    ]


def test_interruptions_change_nothing(finished, resumed):
    whole, pieces = (load_file(run.options.output_dir / "model.safetensors") for run in (finished, resumed))
    assert whole.keys() == pieces.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(pieces[name], weight, rtol=0, atol=1e-6, msg=name)
    teachers = [load_file(run.options.work_dir / "teacher" / "model.safetensors") for run in (finished, resumed)]
    for name, weight in teachers[0].items():
        torch.testing.assert_close(teachers[1][name], weight, rtol=0, atol=1e-6, msg=name)


def test_an_end_that_was_interrupted_is_made_up_for(resumed, tmp_path):
    """All is trained, but the folder was not yet in its place."""
    output = tmp_path / "out"
    options = dataclasses.replace(resumed.options, output_dir=output)
    shutil.copytree(resumed.options.work_dir, options.work_dir)
    (options.work_dir / "options.json").write_text(json.dumps(options.as_json()))
    (options.work_dir / "out").mkdir()
    (options.work_dir / "out" / "half.safetensors").touch()
    # Neither had the teacher's metrics been written behind its weights.
    (options.work_dir / "teacher" / "metrics.json").unlink()
    with watched_steps() as steps:
        distill(options, resume=True)
    assert steps.taken == {}
    assert (output / "model.safetensors").read_bytes() == (resumed.options.output_dir / "model.safetensors").read_bytes()
    assert not (output / "half.safetensors").exists()


def test_a_finished_teacher_is_taken_as_it_is(resumed, tmp_path):
    """Without a look at the checkpoints of its training."""
    options = dataclasses.replace(resumed.options, output_dir=tmp_path / "out")
    shutil.copytree(resumed.options.work_dir, options.work_dir)
    (options.work_dir / "options.json").write_text(json.dumps(options.as_json()))
    shutil.rmtree(options.work_dir / "teacher_training")
    with watched_steps() as steps:
        log = distill(options, resume=True)
    assert steps.taken == {}
    assert log["metrics"]["teacher"] == json.loads((options.work_dir / "teacher" / "metrics.json").read_text())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 7}, r"seed 7 \(was 0\)"),
        ({"teacher": "other"}, r"teacher 'other' \(was '.*encoder'\)"),
        ({"student_training": TrainingOptions(9, 3e-3, 32, 12)}, r": student_training\.epochs 9 \(was 5\)\.$"),
        ({"labels": ["NO", "YES"], "hard_weight": 1.0}, r"hard_weight 1\.0 \(was 0\.5\), labels \['NO', 'YES'\]"),
    ],
    ids=["seed", "teacher", "epochs", "two"],
)
def test_resuming_with_other_options_is_refused(toy, tmp_path, changes, message):
    options = toy_options(toy, tmp_path / "out")
    options.work_dir.mkdir()
    (options.work_dir / "options.json").write_text(json.dumps(options.as_json()))
    with pytest.raises(UserError, match=rf"--resume: .*out\.work.*{message}"):
        distill(dataclasses.replace(options, **changes), resume=True)


def test_nothing_to_resume_is_said(toy, tmp_path):
    with pytest.raises(UserError, match=r"--resume: there is no unfinished distillation in .*out\.work"):
        distill(toy_options(toy, tmp_path / "out"), resume=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("resume", [False, True])
def test_an_output_folder_that_exists_is_left_alone(toy, tmp_path, resume):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"OUTPUT_DIR: '.*out' exists already"):
        distill(toy_options(toy, tmp_path / "out"), resume)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_unfinished_distillation_is_not_overwritten(toy, tmp_path):
    options = toy_options(toy, tmp_path / "out")
    (options.work_dir / "teacher_training").mkdir(parents=True)
    with pytest.raises(UserError, match=r"out\.work' holds an unfinished distillation: give --resume, or remove it"):
        distill(options)


def test_a_file_in_place_of_the_work_folder_is_left_alone(toy, tmp_path):
    options = toy_options(toy, tmp_path / "out")
    options.work_dir.touch()
    with pytest.raises(UserError, match=r"out\.work"):
        distill(options)
    assert options.work_dir.is_file()


def test_an_output_folder_that_cannot_be_made_is_named(toy, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"OUTPUT_DIR: '.*file/out\.work' cannot be written"):
        distill(toy_options(toy, tmp_path / "file" / "out"))


# Other teachers, other folders


def quick_options(teacher: Path, toy: Path, output: Path, **changes) -> Distillation:
    """A given teacher, a few steps, no evaluation."""
    settings = {
        "teacher": str(teacher),
        "fine_tune_teacher": False,
        "eval_file": None,
        "test_files": [],
        "transfer_files": [],
        "labels": [],
        "student_training": TrainingOptions(0.2, 1e-3, 32, 12),
    }
    return toy_options(toy, output, **{**settings, **changes})


def test_a_given_bert_teacher_is_not_trained(toy, tmp_path):
    """Its tokenizer emits token_type_ids, and the folder's name is one that the work folder uses too."""
    teacher = write_bert(tmp_path / "bert")
    options = quick_options(teacher, toy, tmp_path / "student", save_dtype="float16", labels=["NO", "YES"])
    with watched_steps() as steps:
        log = distill(options)
    assert set(steps.taken) == {"student"}
    assert log["metrics"]["teacher"] == {}
    assert set(log["metrics"]["student"]) == {"loss"}
    stored = load_file(options.output_dir / "model.safetensors")
    scalars = {name for name in stored if name.endswith((".alpha", ".beta", ".gamma"))}
    assert {stored[name].dtype for name in scalars} == {torch.float32}
    assert stored["distilbert.embeddings.word_embeddings.weight"].dtype == torch.float16
    student = InhibiDistilBertForSequenceClassification.from_pretrained(options.output_dir)
    assert student.dtype == torch.float32
    assert student.config.id2label == {0: "NO", 1: "YES"}
    tokenizer = AutoTokenizer.from_pretrained(options.output_dir)
    assert set(tokenizer("a good film")) == {"input_ids", "attention_mask"}
    assert tokenizer.model_max_length == POSITIONS


@pytest.mark.parametrize("position_offsets", [False, True])
def test_the_options_reach_the_students_training(toy, tmp_path, position_offsets):
    teacher = write_distilbert(tmp_path / "teacher")
    settings = {"scalar_learning_rate": 1e-2, "temperature": 3.0, "hard_weight": 0.25, "position_offsets": position_offsets}
    with watched_steps(stop=("student", 1)) as steps, pytest.raises(KeyboardInterrupt):
        distill(quick_options(teacher, toy, tmp_path / "out", **settings))
    trainer = steps.trainers["student"]
    assert {name: getattr(trainer, name) for name in settings} == settings
    assert trainer.positions == POSITIONS
    assert trainer.args.learning_rate == 1e-3
    assert trainer.optimizer.param_groups[-1]["initial_lr"] == 1e-2


def test_a_new_student_of_a_published_size_is_distilled(toy, tmp_path):
    teacher = write_distilbert(tmp_path / "teacher", num_labels=2)
    log = distill(quick_options(teacher, toy, tmp_path / "out", student="tiny"))
    student = InhibiDistilBertForSequenceClassification.from_pretrained(tmp_path / "out")
    assert (student.config.dim, student.config.vocab_size) == (128, len(VOCABULARY))
    assert math.isfinite(log["metrics"]["student"]["loss"])


# Bad input: told before anything is trained, and mended without ado


def refused(options: Distillation, message: str) -> None:
    with watched_steps() as steps, pytest.raises(UserError, match=message) as caught:
        distill(options)
    assert "\n" not in str(caught.value)
    assert steps.taken == {}
    assert not options.output_dir.exists()


@pytest.mark.parametrize(
    ("field", "argument"),
    [
        ("train_files", "--train-file"),
        ("transfer_files", "--transfer-file"),
        ("eval_file", "--eval-file"),
        ("test_files", "--test-file"),
    ],
)
def test_a_missing_file_is_told_before_any_training(toy, tmp_path, field, argument):
    missing = tmp_path / "missing.csv"
    value = missing if field == "eval_file" else [missing]
    refused(toy_options(toy, tmp_path / "out", **{field: value}), f"{argument}: '.*missing.csv' is not a file")


def test_after_bad_input_the_same_folder_can_be_used(toy, tmp_path):
    teacher = write_distilbert(tmp_path / "teacher")
    options = quick_options(teacher, toy, tmp_path / "out")
    refused(dataclasses.replace(options, student="huge"), "--student: 'huge'.*base, small, tiny")
    distill(options)
    assert options.output_dir.is_dir()


def test_a_teacher_without_a_head_is_refused(toy, tmp_path):
    refused(quick_options(toy / "encoder", toy, tmp_path / "out"), "--teacher: .*no trained classification head")


def test_a_student_with_other_words_is_refused(toy, tmp_path):
    teacher = write_distilbert(tmp_path / "teacher")
    tiny_student(vocab_size=99).save_pretrained(tmp_path / "start")
    options = quick_options(teacher, toy, tmp_path / "out", student=str(tmp_path / "start"))
    refused(options, "--student: .*99 word embeddings")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["ONE"]}, "--label: 1 names for 2 classes"),
        ({"labels": ["ONE", "TWO", "THREE"], "fine_tune_teacher": False}, "--label: 3 names for 2 classes"),
        ({"labels": ["SAME", "SAME"]}, "--label: the names must differ"),
    ],
    ids=["too-few", "too-many-for-a-given-teacher", "twice-the-same"],
)
def test_the_names_must_be_as_many_as_the_classes(toy, tmp_path, changes, message):
    teacher = write_distilbert(tmp_path / "teacher")
    with pytest.raises(UserError, match=message):
        distill(toy_options(toy, tmp_path / "out", teacher=str(teacher), **changes))


def test_a_class_without_texts_may_have_a_name(toy, tmp_path):
    """Three names for the two classes of the training texts: the fine-tuned teacher gets three."""
    options = toy_options(toy, tmp_path / "out", labels=["BAD", "GOOD", "EXCELLENT"])
    with watched_steps(stop=("student", 1)), pytest.raises(KeyboardInterrupt):
        distill(dataclasses.replace(options, eval_file=None, teacher_training=TrainingOptions(0.1, 1e-3, 32, 16)))
    config = json.loads((options.work_dir / "teacher" / "config.json").read_text())
    assert config["id2label"] == {"0": "BAD", "1": "GOOD", "2": "EXCELLENT"}


@pytest.mark.parametrize(
    ("field", "argument"), [("train_files", "--train-file"), ("eval_file", "--eval-file"), ("test_files", "--test-file")]
)
def test_a_class_the_teacher_does_not_know_is_refused(toy, tmp_path, field, argument):
    teacher = write_distilbert(tmp_path / "teacher")
    three = write_csv(tmp_path / "three.csv", [("a good film", 1), ("a film", 2)])
    value = three if field == "eval_file" else [three]
    options = toy_options(toy, tmp_path / "out", teacher=str(teacher), fine_tune_teacher=field != "train_files")
    refused(dataclasses.replace(options, **{field: value}), f"{argument}.*has class 2.*classes 0 to 1 only")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student_training": TrainingOptions(1, 1e-3, 8, 33)}, r"--max-length must be at most 32.*--student.*got 33"),
        ({"teacher_training": TrainingOptions(1, 1e-3, 8, 33)}, r"--teacher-max-length.*at most 32.*--teacher.*got 33"),
        (
            {"student": "tiny", "student_training": TrainingOptions(1, 1e-3, 8, 33)},
            r"--max-length must be at most 32.*--teacher.*got 33",
        ),
    ],
    ids=["student", "teacher", "labelling"],
)
def test_lengths_beyond_the_positions_are_refused(toy, tmp_path, changes, message):
    refused(toy_options(toy, tmp_path / "out", **changes), message)


# Options out of range

OUT_OF_RANGE = {
    "--train-file": {"train_files": []},
    "--save-dtype": {"save_dtype": "float8"},
    "--temperature": {"temperature": 0.0},
    "--save-steps": {"save_steps": 0},
    "--hard-weight": {"hard_weight": -0.1},
    "--scalar-learning-rate": {"scalar_learning_rate": -1e-3},
    "--seed": {"seed": -1},
    "--teacher-epochs": {"teacher_training": TrainingOptions(0, 1e-3, 8, 16)},
    "--teacher-learning-rate": {"teacher_training": TrainingOptions(1, 0.0, 8, 16)},
    "--teacher-batch-size": {"teacher_training": TrainingOptions(1, 1e-3, 0, 16)},
    "--teacher-max-length": {"teacher_training": TrainingOptions(1, 1e-3, 8, 2)},
    "--epochs": {"student_training": TrainingOptions(-1, 1e-3, 8, 16)},
    "--learning-rate": {"student_training": TrainingOptions(1, -1e-3, 8, 16)},
    "--batch-size": {"student_training": TrainingOptions(1, 1e-3, -8, 16)},
    "--max-length": {"student_training": TrainingOptions(1, 1e-3, 8, 0)},
}


@pytest.mark.parametrize("argument", OUT_OF_RANGE)
def test_an_option_out_of_its_range_is_refused(toy, tmp_path, argument):
    changes = OUT_OF_RANGE[argument]
    with pytest.raises(UserError, match=rf"^{argument}[ :]") as caught:
        toy_options(toy, tmp_path / "out", **changes)
    values = [*changes.values()]
    numbers = [value for value in values if isinstance(value, int | float | str)]
    assert all(str(number) in str(caught.value) for number in numbers)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["temperature", "hard_weight", "scalar_learning_rate"])
def test_numbers_must_be_finite(toy, tmp_path, name, value):
    with pytest.raises(UserError, match=f"^--{name.replace('_', '-')} .*{value}"):
        toy_options(toy, tmp_path / "out", **{name: value})
