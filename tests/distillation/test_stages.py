"""The three stages in a row and each by itself, for the inhibitor and its softmax control; runs that go wrong."""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    DistilBertModel,
    PreTrainedModel,
)

from inhibidistilbert import InhibiDistilBertForMaskedLM, InhibiDistilBertForSequenceClassification, InhibiDistilBertModel
from inhibidistilbert.distillation import checkpoints, inputs, run, training
from inhibidistilbert.distillation.curves import CurveWriter
from inhibidistilbert.distillation.recipe import read_recipe
from inhibidistilbert.distillation.run import run_recipe
from inhibidistilbert.distillation.stages import Task
from inhibidistilbert.distillation.trainer import StageTrainer
from inhibidistilbert.kernels.attention import BACKENDS
from inhibidistilbert.prediction import TextClassifier
from inhibidistilbert.support.errors import UserError
from tests.helpers.toy_recipe import STAGES, curve, run_quietly, run_until_killed_at, three_stages
from tests.helpers.toy_task import VOCABULARY, write_csv, write_distilbert


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """A random classifier whose hidden states differ from text to text."""
    return write_distilbert(tmp_path_factory.mktemp("teacher"), initializer_range=0.3)


@pytest.fixture(scope="module")
def whole(toy, teacher, tmp_path_factory) -> Path:
    """All three stages in one go."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    run_recipe(three_stages(toy, teacher), folder)
    return folder


@pytest.fixture(scope="module")
def aligned(toy, teacher, tmp_path_factory) -> Path:
    """The first stage alone."""
    folder = tmp_path_factory.mktemp("aligned") / "out"
    run_recipe(three_stages(toy, teacher, stage="align"), folder)
    return folder


def log_of(folder: Path) -> dict:
    return json.loads((folder / "distillation.json").read_text())


# What comes out


def test_all_stages_learn(whole):
    log = log_of(whole)
    assert list(log["stages"]) == STAGES
    assert len(log["stages"]["align"]["alignment"]) == 2
    losses = {stage: [record["loss"] for record in curve(whole) if record["stage"] == stage] for stage in STAGES}
    for stage in STAGES:
        assert log["stages"][stage]["steps"] == 12
        assert losses[stage][-1] < losses[stage][0], stage


@pytest.mark.parametrize(("with_base", "loads"), [(False, 6), pytest.param(True, 8, marks=pytest.mark.slow)])
def test_weights_are_loaded_as_often_as_stages_need_them(toy, teacher, tmp_path, monkeypatch, with_base, loads):
    """The teacher with and without its head, and a student for each stage and for the tests; twice for a task vector."""
    loaded, from_pretrained = [], PreTrainedModel.from_pretrained.__func__

    def counted(kind, *args, device_map=None, **options):
        model = from_pretrained(kind, *args, device_map=device_map, **options)
        first = model[0] if isinstance(model, tuple) else model
        if first.device.type != "meta":
            loaded.append(kind.__name__)
        return model

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(counted))
    base = write_distilbert(tmp_path / "base", DistilBertModel)
    changes = [f"task.teacher_base={base}"] if with_base else []
    run_recipe(three_stages(toy, teacher, *(f"{stage}.max_steps=1" for stage in STAGES), *changes), tmp_path / "out")
    assert len(loaded) == loads, loaded
    # Shorter than the interval between logs, and in the picture all the same.
    assert {record["stage"] for record in curve(tmp_path / "out") if "loss" in record} == set(STAGES)


def test_the_alignment_is_what_the_last_window_left_unexplained(whole):
    last = [record for record in curve(whole) if record["stage"] == "align"][-1]
    alignment = log_of(whole)["stages"]["align"]["alignment"]
    assert alignment == pytest.approx([1 - last["unexplained_0"], 1 - last["unexplained_1"]])
    assert last["loss"] == pytest.approx(last["unexplained_0"] + last["unexplained_1"], rel=1e-5)


def test_each_term_of_the_loss_is_in_the_curve(whole):
    task = [record for record in curve(whole) if record["stage"] == "task"][-1]
    assert task["loss"] == pytest.approx(task["soft"] + task["hidden"] + 0.5 * task["hard"], rel=1e-5)
    assert (whole / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_tracker_gets_each_term_of_the_loss(toy, teacher, tmp_path):
    recipe = three_stages(toy, teacher, "trainer.report_to=tensorboard", stage="task")
    run_recipe(recipe, tmp_path / "out")
    (events,) = (tmp_path / "out.work").rglob("*tfevents*")
    written = events.read_bytes()
    for name in (b"loss", b"soft", b"hidden", b"hard"):
        assert b"train/" + name in written, name


def test_the_control_is_trained_by_the_same_stages(toy, teacher, whole, tmp_path):
    log = run_recipe(three_stages(toy, teacher, "student.attention=softmax"), tmp_path / "out")
    student = DistilBertForSequenceClassification.from_pretrained(tmp_path / "out")
    assert student.config.model_type == "distilbert"
    assert {stage: result["steps"] for stage, result in log["stages"].items()} == dict.fromkeys(STAGES, 12)
    # A copy of its teacher: nothing is left to explain.
    assert log["stages"]["align"]["alignment"] == pytest.approx([1, 1], abs=1e-6)
    assert log["stages"]["pretrain"]["loss"] < 1e-3 < log_of(whole)["stages"]["pretrain"]["loss"]
    inhibitor = {stage["name"]: stage for stage in log_of(whole)["recipe"]["stages"]}
    assert {stage["name"]: stage for stage in log["recipe"]["stages"]} == inhibitor


def test_stages_one_by_one_make_the_same_student(toy, teacher, whole, tmp_path):
    source = "teacher"
    for stage, kind in zip(STAGES, (*[InhibiDistilBertModel] * 2, InhibiDistilBertForSequenceClassification), strict=True):
        run_recipe(three_stages(toy, teacher, f"student.source={source}", stage=stage), tmp_path / stage)
        source = tmp_path / stage
        assert isinstance(kind.from_pretrained(source), kind)
    alone, together = (load_file(folder / "model.safetensors") for folder in (tmp_path / "task", whole))
    for name, weight in together.items():
        torch.testing.assert_close(alone[name], weight, rtol=0, atol=1e-5, msg=name)


def test_training_runs_on_the_compiled_backend(toy, teacher, tmp_path, monkeypatch):
    calls, backend = [], BACKENDS["cpu"]
    counted = backend._replace(load=lambda: calls.append(1) or backend.load())
    monkeypatch.setitem(BACKENDS, "cpu", counted)
    run_recipe(three_stages(toy, teacher, "align.max_steps=2", stage="align"), tmp_path / "out")
    assert calls


def test_accumulated_and_checkpointed_steps_are_the_same_steps(toy, teacher, tmp_path):
    changes = ["pretrain.max_steps=6", "pretrain.dropout=0"]
    folders = [tmp_path / name for name in ("plain", "parts")]
    parts = ["trainer.gradient_accumulation_steps=4", "trainer.gradient_checkpointing=true"]
    for folder, more in zip(folders, ([], parts), strict=True):
        run_recipe(three_stages(toy, teacher, *changes, *more, stage="pretrain"), folder)
    first, second = map(curve, folders)
    for record, other in zip(first, second, strict=True):
        assert other["loss"] == pytest.approx(record["loss"], abs=1e-5)


def test_bfloat16_autocast_is_close(toy, teacher, whole, tmp_path):
    run_recipe(three_stages(toy, teacher, "bf16=true", stage="align"), tmp_path / "out")
    for record, exact in zip(curve(tmp_path / "out"), curve(whole), strict=False):
        assert record["loss"] == pytest.approx(exact["loss"], rel=0.05)
        assert record["loss"] != exact["loss"]


@pytest.mark.parametrize(("bf16", "chosen"), [("true", ["eager"]), ("false", [])])
def test_softmax_steps_in_bfloat16_on_a_cpu_take_the_eager_form(toy, teacher, tmp_path, monkeypatch, bf16, chosen):
    calls = []
    monkeypatch.setattr(PreTrainedModel, "set_attn_implementation", lambda model, name: calls.append(name))
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    changes = ["student.attention=softmax", f"bf16={bf16}", "align.max_steps=1"]
    run_recipe(three_stages(toy, teacher, *changes, stage="align"), tmp_path / "out")
    assert calls == chosen


def test_masked_tokens_are_learned_where_the_teacher_has_a_head(toy, tmp_path):
    teacher = write_distilbert(tmp_path / "teacher", DistilBertForMaskedLM, initializer_range=0.3)
    weights = ["pretrain.mlm_weight=1", "pretrain.soft_mlm_weight=2", "pretrain.max_steps=24", "pretrain.blocks=true"]
    log = run_recipe(three_stages(toy, teacher, *weights, stage="pretrain"), tmp_path / "out")
    records = curve(tmp_path / "out")
    for record in records:
        assert record["loss"] == pytest.approx(record["hidden"] + record["mlm"] + 2 * record["soft_mlm"], rel=1e-5)
    assert records[-1]["soft_mlm"] < records[0]["soft_mlm"]
    assert log["tests"] == {}
    student = InhibiDistilBertForMaskedLM.from_pretrained(tmp_path / "out")
    assert student.vocab_projector.weight.data_ptr() == student.get_input_embeddings().weight.data_ptr()


def test_a_teacher_without_that_head_is_refused(toy, teacher, tmp_path):
    with pytest.raises(UserError, match=r"--teacher: .*no trained head 'MaskedLM'"):
        run_recipe(three_stages(toy, teacher, "pretrain.mlm_weight=1", stage="pretrain"), tmp_path / "out")


FOUR_STEPS = [f"{stage}.max_steps=4" for stage in STAGES]


def write_deep_bert(folder: Path) -> Path:
    torch.manual_seed(0)
    settings = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 12, "num_attention_heads": 4}
    config = BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=32, initializer_range=0.2, **settings)
    BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizer(vocab=VOCABULARY).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("attention", ["inhibitor", pytest.param("softmax", marks=pytest.mark.slow)])
def test_twelve_layers_become_six(toy, tmp_path, attention):
    """Copied from the layers the authors chose, and learning from them."""
    teacher = write_deep_bert(tmp_path / "bert")
    layers = ["student.layers=[0, 2, 4, 7, 9, 11]", f"student.attention={attention}"]
    log = run_recipe(three_stages(toy, teacher, *layers, *FOUR_STEPS), tmp_path / "out")
    assert len(log["stages"]["align"]["alignment"]) == 6
    student = InhibiDistilBertForSequenceClassification if attention == "inhibitor" else DistilBertForSequenceClassification
    assert student.from_pretrained(tmp_path / "out").config.n_layers == 6


def test_a_small_student_of_a_deep_wide_teacher_keeps_no_maps(toy, tmp_path):
    teacher = write_deep_bert(tmp_path / "bert")
    config = "student.config={n_layers: 3, dim: 32, n_heads: 2, hidden_dim: 64}"
    log = run_recipe(three_stages(toy, teacher, "student.source=tiny", config, *FOUR_STEPS), tmp_path / "out")
    assert len(log["stages"]["align"]["alignment"]) == 3
    student, info = InhibiDistilBertForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert student.config.dim == 32
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]


# Other kinds of tasks


def graded(path: Path) -> Path:
    """A number for each sentence: the share of its words that are neutral, times 4, minus 2."""
    rows = [("a good film", 1.0), ("bad", -2.0), ("the plot was so dull", 0.5), ("great", 2.0), ("very poor music", -1.0)]
    return write_csv(path, rows * 16)


def test_regression_is_distilled(toy, tmp_path):
    teacher = write_distilbert(tmp_path / "teacher", num_labels=1, initializer_range=0.3)
    file = str(graded(tmp_path / "graded.csv"))
    given = {"data__train_files": [file], "data__test_files": [file], "data__eval_file": file}
    log = run_recipe(three_stages(toy, teacher, "data.kind=regression", stage="task", **given), tmp_path / "out")
    assert set(log["stages"]["task"]["eval"]) == {"pearson", "spearmanr"}
    assert set(log["tests"]["student"][file]) == {"pearson", "spearmanr", "texts"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["problem_type"] == "regression"


def test_a_regression_needs_a_teacher_with_one_output(toy, teacher, tmp_path):
    given = {"data__train_files": [str(graded(tmp_path / "graded.csv"))], "data__test_files": []}
    with pytest.raises(UserError, match="regression needs a teacher with one output, this one has 2"):
        run_recipe(three_stages(toy, teacher, "data.kind=regression", stage="task", **given), tmp_path / "out")


def jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


TAGGED = [{"text": ["the", "film", "was", "good"], "label": [0, 1, 0, 2]}, {"text": ["dull", "plot"], "label": [2, 1]}] * 20
ASKED = [
    {
        "question": "the film",
        "context": "a great film was so funny",
        "answers": {"text": ["great film"], "answer_start": [2]},
    },
    {"question": "the plot", "context": "dull", "answers": {"text": [], "answer_start": []}},
] * 20
STRUCTURED = {
    "token-classification": (TAGGED, {"accuracy", "f1"}),
    "question-answering": (ASKED, {"exact_match", "f1"}),
}


@pytest.mark.parametrize("kind", ["token-classification", pytest.param("question-answering", marks=pytest.mark.slow)])
def test_tokens_and_answers_are_learned_by_a_teacher_and_distilled(toy, tmp_path, kind):
    rows, metrics = STRUCTURED[kind]
    file = jsonl(tmp_path / "rows.jsonl", rows)
    given = {"data__train_files": [file], "data__test_files": [file]}
    tuning = ["task.learning_rate=5e-3", "task.epochs=15", "task.max_length=16", f"data.kind={kind}"]
    source = write_distilbert(tmp_path / "encoder", DistilBertModel)
    log = run_recipe(read_recipe("finetune", tuning, student__source=str(source), **given), tmp_path / "teacher")
    assert set(log["tests"]["student"][file]) == metrics | {"texts"}
    assert min(log["tests"]["student"][file][metric] for metric in metrics) > 0.9
    given["data__transfer_files"] = [file]
    changes = [f"data.kind={kind}", "task.max_steps=40", "task.learning_rate=5e-3", "task.max_length=16", "task.dropout=0"]
    log = run_recipe(three_stages(toy, tmp_path / "teacher", *changes, **given), tmp_path / "out")
    assert min(log["tests"]["student"][file][metric] for metric in metrics) > 0.9


MOODS = {"funny": 0.95, "warm": 0.88, "dark": 0.05}


def write_multi_label(folder: Path) -> Path:
    """A teacher that gives every text these labels with these probabilities."""
    names = {"id2label": dict(enumerate(MOODS)), "label2id": {name: place for place, name in enumerate(MOODS)}}
    write_distilbert(folder, num_labels=3, problem_type="multi_label_classification", **names)
    teacher = DistilBertForSequenceClassification.from_pretrained(folder)
    torch.nn.init.zeros_(teacher.classifier.weight)
    teacher.classifier.bias.data = torch.tensor(list(MOODS.values())).logit()
    teacher.save_pretrained(folder)
    return folder


def probabilities(folder: Path, text: str) -> dict[str, float]:
    (answer,) = TextClassifier.from_folder(folder).predict([text])
    return answer.scores


FAST = ["task.max_steps=60", "task.batch_size=16", "task.max_length=12", "task.learning_rate=1e-2"]


def test_a_multi_label_teacher_is_recognised_and_its_student_gives_what_it_gives(toy, tmp_path):
    teacher, test = write_multi_label(tmp_path / "teacher"), jsonl(tmp_path / "test.jsonl", MOODY)
    given = {"data__transfer_files": [str(toy / "transfer.txt")], "data__test_files": [test]}
    recipe = read_recipe(
        "classifier", [*FAST, "task.hard_weight=0"], teacher=str(teacher), student__source=str(toy / "start"), **given
    )
    log = run_recipe(recipe, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert config["id2label"] == {"0": "funny", "1": "warm", "2": "dark"}
    assert probabilities(tmp_path / "out", "a good film") == pytest.approx(MOODS, abs=0.03)
    # Always funny and warm: of these six answers three are right, and one of the four labels is missed.
    right, answers, wanted = 3, 6, 4
    for role in ("teacher", "student"):
        assert log["tests"][role][test]["f1_micro"] == pytest.approx(2 * right / (answers + wanted))
    assert set(log["tests"]["student"][test]) == {"f1_micro", "f1_macro", "average_precision", "texts"}


MOODY = [
    {"text": "a funny film", "label": ["funny", "warm"]},
    {"text": "the plot was so dull", "label": []},
    {"text": "a good story", "label": ["warm", "dark"]},
]


@pytest.mark.slow  # a teacher of several labels that is given stays
def test_several_labels_are_learned_from_files_and_then_distilled(toy, tmp_path):
    """By the words in the text; the teacher's from CSV, the student's from numbers in JSON, in addition to its answers."""
    words = {"good": "funny", "dull": "dark"}
    texts = ["a good film", "the plot was dull", "a film", "so good and so dull"] * 12
    given = [[label for word, label in words.items() if word in text] for text in texts]
    named = tmp_path / "named.csv"
    named.write_text("text,label\n" + "".join(f"{text},{'|'.join(row)}\n" for text, row in zip(texts, given, strict=True)))
    numbers = [[list(words.values()).index(label) for label in row] for row in given]
    rows = [{"text": text, "label": row} for text, row in zip(texts, numbers, strict=True)]
    changes = ["data.kind=multi-label-classification", *FAST]
    tuning = {"student__source": str(toy / "encoder"), "data__labels": ["funny", "dark"], "data__test_files": [str(named)]}
    recipe = read_recipe("finetune", changes, data__train_files=[str(named)], **tuning)
    tuned = run_recipe(recipe, tmp_path / "teacher")
    assert tuned["tests"]["student"][str(named)]["f1_macro"] > 0.9
    file = jsonl(tmp_path / "numbers.jsonl", rows)
    given = {"data__train_files": [file], "data__test_files": [file], "data__eval_file": file}
    recipe = read_recipe("classifier", FAST, teacher=str(tmp_path / "teacher"), student__source=str(toy / "start"), **given)
    log = run_recipe(recipe, tmp_path / "out")
    assert log["tests"]["student"][file]["f1_macro"] > 0.9
    assert log["stages"]["task"]["eval"].keys() == {"f1_micro", "f1_macro", "average_precision"}
    student = probabilities(tmp_path / "out", "so good and so dull")
    assert min(student["funny"], student["dark"]) > 0.5


def test_labels_without_names_are_refused(toy, tmp_path):
    file = jsonl(tmp_path / "rows.jsonl", MOODY)
    recipe = read_recipe(
        "finetune",
        ["data.kind=multi-label-classification"],
        student__source=str(toy / "encoder"),
        data__train_files=[file],
    )
    with pytest.raises(UserError, match=r"--label \(data\.labels\): .*needs the names of all labels"):
        run_recipe(recipe, tmp_path / "out")


MISFITS = {
    "multi-label": (3, "multi_label_classification", "classification"),
    "single-label": (3, "single_label_classification", "multi-label-classification"),
    "regression": (1, "regression", "classification"),
    "one output": (1, None, "classification"),
    "labels as a number": (1, "multi_label_classification", "regression"),
    "several numbers": (3, "regression", "regression"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_teacher_of_another_kind_is_refused_by_name(toy, tmp_path, name):
    outputs, problem, kind = MISFITS[name]
    teacher = write_distilbert(tmp_path / "teacher", num_labels=outputs, problem_type=problem)
    label = 0.5 if kind == "regression" else [0] if "multi" in kind else 0
    given = {
        "data__train_files": [jsonl(tmp_path / "rows.jsonl", [{"text": "a film", "label": label}])],
        "data__test_files": [],
    }
    with pytest.raises(UserError) as caught:
        run_recipe(three_stages(toy, teacher, f"data.kind={kind}", stage="task", **given), tmp_path / "out")
    message = str(caught.value)
    if name == "several numbers":
        assert "regression needs a teacher with one output, this one has 3" in message
    else:
        assert f"{str(teacher)!r} is a" in message
        assert f"problem_type {problem!r}" in message or (problem is None and "no problem_type" in message)
        assert f"data.kind {kind!r}" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["classification", None])
def test_a_teacher_with_another_head_is_refused_by_name(toy, tmp_path, kind):
    head = "DistilBertForTokenClassification" if kind else "DistilBertForMultipleChoice"
    teacher = write_distilbert(tmp_path / "teacher", getattr(transformers, head), num_labels=1 if kind is None else 2)
    changes = [f"data.kind={kind}"] if kind else []
    with pytest.raises(UserError, match=f"teacher' holds a {head}, but data.kind .* needs a model …ForSequenceClass"):
        run_recipe(three_stages(toy, teacher, *changes, stage="task"), tmp_path / "out")


def test_classes_are_not_called_by_one_anothers_names(toy, tmp_path):
    names = {"id2label": {0: "BAD", 1: "GOOD"}, "label2id": {"BAD": 0, "GOOD": 1}}
    teacher = write_distilbert(tmp_path / "teacher", **names)
    with pytest.raises(UserError, match=r"calls its classes BAD, GOOD, .* are to be GOOD, BAD \(--label, data\.labels\)"):
        run_recipe(three_stages(toy, teacher, "data.labels=[GOOD, BAD]", stage="task"), tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("token-classification", {"text": ["a", "film"], "label": [0]}, "row 0 has 2 words but 1 labels"),
        (
            "token-classification",
            {"text": ["a", "film"], "label": [0, 7]},
            "has class 7, but the classifier has classes 0 to 2",
        ),
        ("token-classification", {"text": "a film", "label": [0]}, "must hold lists of words in 'text'"),
        ("question-answering", {"question": "a", "context": "b"}, "has no column 'answers'"),
        (
            "question-answering",
            {"question": "a", "context": "a film", "answers": {"text": ["plot"], "answer_start": [2]}},
            "the answer 'plot' does not stand at answer_start 2",
        ),
    ],
)
def test_rows_that_are_not_of_their_kind_are_refused(toy, tmp_path, kind, row, message):
    heads = {
        "token-classification": "DistilBertForTokenClassification",
        "question-answering": "DistilBertForQuestionAnswering",
    }
    labels = 3 if kind == "token-classification" else 2
    teacher = write_distilbert(tmp_path / "teacher", getattr(transformers, heads[kind]), num_labels=labels)
    given = {"data__train_files": [jsonl(tmp_path / "rows.jsonl", [row])], "data__test_files": []}
    with pytest.raises(UserError, match=message):
        run_recipe(three_stages(toy, teacher, f"data.kind={kind}", stage="task", **given), tmp_path / "out")


# Bad input to the unlabelled stages


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.text_files=[]"], "--text-file .*at least one file"),
        (["data.text_files=[missing.txt]"], "--text-file .*'missing.txt' is not a file"),
        (["pretrain.hidden_layer_weights=[1, 2, 3]"], "hidden_layer_weights must be 2 numbers"),
        (["pretrain.max_length=33"], r"pretrain\.max_length must be at most 32"),
        (["trainer.dataloader_num_workers=2"], "dataloader_num_workers must be 0 or 1"),
        (["trainer.eval_strategy=steps"], "has no --eval-file"),
        (["student.layers=[0]", "student.source=tiny"], r"student\.layers must be 3 integers"),
    ],
)
def test_bad_input_is_told_before_a_step(toy, teacher, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(StageTrainer, "training_step", lambda *_, **__: pytest.fail("a step was taken"))
    with pytest.raises(UserError, match=message) as caught:
        run_recipe(three_stages(toy, teacher, *changes, stage="pretrain"), tmp_path / "out")
    assert "\n" not in str(caught.value)


# Killed


def run_in_a_process(target, *args) -> multiprocessing.Process:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.helpers.toy_recipe"])
    process = context.Process(target=target, args=args)
    process.start()
    return process


def same_curve(folder: Path, whole: Path) -> None:
    pieces, expected = curve(folder), curve(whole)
    assert [(record["stage"], record["step"]) for record in pieces] == [
        (record["stage"], record["step"]) for record in expected
    ]
    for record, other in zip(pieces, expected, strict=True):
        assert record == {
            name: value if isinstance(value, str) else pytest.approx(value, abs=1e-5) for name, value in other.items()
        }
    stored, other = (load_file(place / "model.safetensors") for place in (folder, whole))
    for name, weight in other.items():
        torch.testing.assert_close(stored[name], weight, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("stage", "checkpoint", "half_written", "kept"),
    # Three checkpoints a stage: the second of the alignment alone, and the last of the task after the other stages.
    [
        pytest.param("align", 2, True, ("align", {"checkpoint-4"}), id="weights-half-written"),
        pytest.param(
            None, 9, False, ("task", {"checkpoint-4", "checkpoint-8"}), id="not-yet-renamed", marks=pytest.mark.slow
        ),
    ],
)
def test_killed_while_a_checkpoint_is_written(toy, teacher, request, tmp_path, stage, checkpoint, half_written, kept):
    recipe, output = three_stages(toy, teacher, stage=stage), tmp_path / "out"
    process = run_in_a_process(run_until_killed_at, recipe, output, checkpoint, half_written)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    whole = "whole" if stage is None else "aligned"
    stage, names = kept
    assert {path.name for path in (tmp_path / "out.work" / stage).glob("checkpoint-*")} == names
    assert any((tmp_path / "out.work" / stage / "unfinished").iterdir())
    run_recipe(recipe, output)
    same_curve(output, request.getfixturevalue(whole))


@pytest.mark.slow
def test_killed_at_random_moments(toy, teacher, whole, tmp_path):
    recipe, output = three_stages(toy, teacher), tmp_path / "out"
    moments, kills = random.Random(0), 0
    while not output.exists():
        process = run_in_a_process(run_quietly, recipe, output)
        process.join(moments.uniform(0.5, 6 + kills))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
    assert kills >= 3
    same_curve(output, whole)


# A full disk, a folder that cannot be written, a loss that is no number


def test_too_little_space_is_told_before_a_step(toy, teacher, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    monkeypatch.setattr(StageTrainer, "training_step", lambda *_, **__: pytest.fail("a step was taken"))
    with pytest.raises(UserError, match=r"OUTPUT_DIR: the disk of .* has 0\.00 GB free, but 3 checkpoints need"):
        run_recipe(three_stages(toy, teacher, stage="align"), tmp_path / "out")


def full_disk_from(call: int, error: Exception):
    """A function that stores as usual until the given call, which writes a part and fails."""
    calls = []

    def save(state: dict, path: str, **kwargs) -> None:
        calls.append(path)
        if len(calls) < call:
            return store(state, path, **kwargs)
        Path(path).write_bytes(b"part")
        raise error

    store = checkpoints.save_file
    return save


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(OSError(28, "No space left on device"), id="os"),
        pytest.param(RuntimeError("PytorchStreamWriter failed writing file"), id="torch", marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_fills_up_leaves_the_earlier_checkpoints(toy, teacher, aligned, tmp_path, monkeypatch, error):
    recipe, output = three_stages(toy, teacher, stage="align"), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", full_disk_from(2, error))
        with pytest.raises(
            UserError, match=r"OUTPUT_DIR: checkpoint-8 could not be written.*checkpoints are intact"
        ) as caught:
            run_recipe(recipe, output)
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "out.work" / "align").glob("*") if path.is_dir()] == ["checkpoint-4"]
    run_recipe(recipe, output)
    same_curve(output, aligned)


# What writes while the disk is full, and how many bytes fit into a file then.
FULL = {
    "student": (training, "save_student", 1000),
    "texts": (Task, "rows", 500),
    "record": (run, "claim", 10),
    "curve": (CurveWriter, "on_log", 10),
    "weights": (checkpoints.CheckpointTrainer, "_save_checkpoint", 1000),
    "moments": (checkpoints.CheckpointTrainer, "_save_optimizer_and_scheduler", 1000),
    "seal": (checkpoints, "seal", 10),
    "inputs": (inputs, "write_text", 10),
    "result": (training, "write_text", 10),
    "end": (run, "finish", 1000),
}


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
@pytest.mark.parametrize("what", [pytest.param(what, marks=pytest.mark.slow if n else ()) for n, what in enumerate(FULL)])
def test_wherever_a_disk_fills_up_the_same_command_goes_on(toy, teacher, tmp_path, monkeypatch, what):
    """The system itself refuses to write more, so the errors are those of each library."""
    import resource

    place, name, fits = FULL[what]
    write, (soft, hard) = getattr(place, name), resource.getrlimit(resource.RLIMIT_FSIZE)

    def written_to_a_full_disk(*args, **kwargs):
        resource.setrlimit(resource.RLIMIT_FSIZE, (fits, hard))
        try:
            return write(*args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    recipe = three_stages(toy, teacher, stage="task")
    with monkeypatch.context() as patch:
        patch.setattr(place, name, written_to_a_full_disk)
        with pytest.raises(UserError, match=r"OUTPUT_DIR: .* (cannot|could not) be written") as caught:
            run_recipe(recipe, tmp_path / "out")
    assert re.search("File too large|inline_container", str(caught.value))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    steps = []
    step = StageTrainer.training_step
    monkeypatch.setattr(StageTrainer, "training_step", lambda self, *args: steps.append(0) or step(self, *args))
    assert run_recipe(recipe, tmp_path / "out")["stages"]["task"]["steps"] == 12
    assert len(steps) == {"student": 0, "result": 0, "end": 0}.get(what, 12)


@pytest.mark.parametrize(
    "stage", [pytest.param(stage, marks=() if stage == "pretrain" else pytest.mark.slow) for stage in STAGES]
)
def test_a_loss_that_is_no_number_stops_the_run(toy, teacher, tmp_path, monkeypatch, stage):
    """The weights of layer 1 are spoilt in the sixth step: step, stage and layer are told, and step 4 is kept."""
    step = StageTrainer.training_step

    def spoilt(self, *args, **kwargs):
        if self.state.global_step == 5:
            layer = self.model.student.base_model.transformer.layer[1]
            layer.attention.out_lin.weight.data[0, 0] = torch.inf
        return step(self, *args, **kwargs)

    monkeypatch.setattr(StageTrainer, "training_step", spoilt)
    with pytest.raises(
        UserError, match=rf"stage {stage}, step 6: the loss .*not finite.*layer 1 .*{stage}\.learning_rate"
    ) as caught:
        run_recipe(three_stages(toy, teacher, stage=stage), tmp_path / "out")
    assert "\n" not in str(caught.value)
    (kept,) = (tmp_path / "out.work" / stage).glob("checkpoint-*")
    assert kept.name == "checkpoint-4"
    assert all(weight.isfinite().all() for weight in load_file(kept / "model.safetensors").values())


def test_weights_that_are_no_numbers_are_not_stored(toy, teacher, tmp_path, monkeypatch):
    """The gradient of the step before a checkpoint spoils them, whose own loss was finite."""
    step = StageTrainer.training_step

    def spoilt(self, *args, **kwargs):
        loss = step(self, *args, **kwargs)
        if self.state.global_step == 7:
            self.model.student.transformer.layer[0].attention.q_lin.weight.data[0, 0] = torch.nan
        return loss

    monkeypatch.setattr(StageTrainer, "training_step", spoilt)
    with pytest.raises(
        UserError, match=r"checkpoint-8 is not written: student.*layer\.0\.attention\.q_lin\.weight is not finite"
    ):
        run_recipe(three_stages(toy, teacher, stage="align"), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out.work" / "align").glob("checkpoint-*")] == ["checkpoint-4"]
