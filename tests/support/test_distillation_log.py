"""The schema of `distillation.json`: it reads what it writes, and refuses another form."""

import json

import pytest

from inhibidistilbert.prediction import default_checkpoint
from inhibidistilbert.support.distillation_log import FILE, DistillationLog, StageResult
from inhibidistilbert.support.errors import UserError

SETTINGS = {"name": "task", "epochs": 2.0, "learning_rate": 1e-3, "batch_size": 32, "max_length": 64}
LOG = DistillationLog(
    recipe={"teacher": "runs/teacher", "student": {"source": "tiny"}, "stages": [SETTINGS]},
    stages={"task": StageResult(steps=12, loss=0.25, environments=[{"torch": "2.13.0", "processes": 2}])},
    tests={"student": {"test.csv": {"accuracy": 0.875, "texts": 60}}},
)


@pytest.mark.parametrize("teacher", [None, DistillationLog({"stages": [SETTINGS]}, {"task": StageResult()})])
def test_what_is_written_is_read(teacher, tmp_path):
    log = DistillationLog(LOG.recipe, LOG.stages, LOG.tests, machine="x86_64, 2 threads", teacher=teacher)
    (tmp_path / FILE).write_text(json.dumps(log.as_json()))
    assert DistillationLog.read(tmp_path) == log


def test_trainings_are_told_by_steps_or_else_by_epochs_and_the_teachers_first():
    before = DistillationLog({"stages": [SETTINGS]}, {"task": StageResult()})
    first, second = DistillationLog(LOG.recipe, LOG.stages, teacher=before).trainings()
    how = "learning rate 0.001, batches of 32 texts of up to 64 tokens"
    assert first == ("fine-tuning of the teacher", None, f"epochs 2.0, {how}")
    assert second == ("task", "runs/teacher", f"12 steps, {how}")


@pytest.mark.parametrize("content", [{}, {"recipe": {}}, {"stages": {}}, {"recipe": {}, "stages": [1]}, {"options": {}}])
def test_another_form_is_refused(content):
    with pytest.raises(UserError, match=r"'distillation\.json' is not of its form"):
        DistillationLog.from_json(content)


def test_the_shipped_checkpoint_says_how_it_was_made():
    """By a run that fine-tuned its teacher first, and did not count its steps."""
    log = DistillationLog.read(default_checkpoint())
    assert [course for *_, course in log.trainings()] == [
        "epochs 2.0, learning rate 6e-05, batches of 32 texts of up to 128 tokens",
        "epochs 2.0, learning rate 0.0005, batches of 64 texts of up to 128 tokens",
    ]
    assert {path: content["bytes"] for path, content in log.data.items()}[".cache/data/transfer.txt"] == 20961261
    assert log.notes["texts"] == {"labelled": 18530, "all": 215852}
