"""Recipes: what is read, and how a wrong key, type or value is told."""

import json

import pytest
import yaml

from inhibidistilbert.distillation.recipe import build_recipe, read_recipe, recipe_names
from inhibidistilbert.support.errors import UserError


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_is_right(name):
    recipe = read_recipe(name)
    assert recipe.stages
    assert build_recipe(json.loads(json.dumps(recipe.as_json()))) == recipe


def test_numbers_are_read_as_yaml_1_2_has_them(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("stages:\n  - {stage: align, max_steps: 10, learning_rate: 1e-3, weight_decay: 1.5e-2}\n")
    (stage,) = read_recipe(str(file), ["align.scalar_learning_rate=2E-2"]).stages
    assert (stage.learning_rate, stage.weight_decay, stage.scalar_learning_rate) == (0.001, 0.015, 0.02)


def test_two_stages_of_a_kind_have_names():
    stages = [{"stage": "align", "name": "first", "max_steps": 5}, {"stage": "align", "name": "second", "max_steps": 6}]
    recipe = build_recipe({"stages": stages})
    assert [(stage.name, stage.kind, stage.max_steps) for stage in recipe.stages] == [
        ("first", "align", 5),
        ("second", "align", 6),
    ]


def test_later_changes_win():
    recipe = read_recipe("distill", ["seed=1", "seed=2"], task__epochs=7, task__temperature=None)
    assert (recipe.seed, recipe.stages[-1].epochs, recipe.stages[-1].temperature) == (2, 7, 2.0)


WRONG = {
    "stages": (["studnet.source=x"], "unknown key studnet: did you mean student"),
    "a setting": (["align.max_step=3"], r"unknown key align\.max_step: did you mean align\.max_steps"),
    "inside": (["student.attension=softmax"], r"unknown key student\.attension: did you mean student\.attention"),
    "nothing near": (["data.zzz=3"], r"unknown key data\.zzz: known are text_files"),
    "a type": (["align.max_steps=many"], r"align\.max_steps must be int \| None, got 'many'"),
    "a choice": (["align.loss=l1"], r"align\.loss must be one of 'variance', 'cosine', 'mse', got 'l1'"),
    "a list": (["student.layers=[a]"], r"student\.layers must be list\[int\] \| None, got \['a'\]"),
    "a mapping": (["student=3"], "student must be a mapping, got 3"),
    "zero": (["align.batch_size=0"], r"align\.batch_size must be a number above 0, got 0"),
    "not finite": (["task.temperature=.nan"], r"task\.temperature must be a number above 0, got nan"),
    "negative": (["pretrain.weight_decay=-1"], r"pretrain\.weight_decay must be a number from 0, got -1"),
    "dropout": (["pretrain.dropout=1"], r"pretrain\.dropout must be from 0 to below 1, got 1"),
    "too short": (["task.max_length=2"], r"task\.max_length must be at least 3 tokens, got 2"),
    "too short for tests": (["data.test_max_length=2"], r"data\.test_max_length must be at least 3 tokens, got 2"),
    "no loss": (["pretrain.hidden_weight=0"], "pretrain: one of hidden_weight, .* must be above 0"),
    "no end": (["align.max_steps=null"], r"align\.max_steps: give the number of steps"),
    "no value": (["align"], "--set: 'align' must be KEY=VALUE"),
    "a stage": (["align=3"], r"--set: 'align' is a whole stage"),
    "no mapping inside": (["teacher=x", "teacher.y=3"], "--set: 'teacher.y': 'teacher' has no settings inside"),
    "yaml": (["seed=[1"], "--set 'seed=.*not valid YAML"),
    "seed": (["seed=-1"], "seed must be between 0 and 4294967295, got -1"),
    "one column twice": (
        ["data.text_pair_column=text"],
        "data.text_pair_column must name different columns",
    ),
    "twins": (["data.labels=[A, A]"], "names must differ, got A, A"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_named(name):
    changes, message = WRONG[name]
    with pytest.raises(UserError, match=message) as caught:
        read_recipe("distill", changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "must hold a mapping"),
        ("stages: 3\n", "stages must be a list"),
        ("stages: [{stage: alig}]\n", "one of align, pretrain, task, got 'alig'"),
        ("stages: [{stage: task}, {stage: task}]\n", "two are called 'task'"),
        ("stages: [{stage: task, name: seed}]\n", "'seed' is a key of the recipe itself"),
        ("stages: [\n", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_recipe(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(caught.value)


def test_a_recipe_survives_yaml():
    recipe = read_recipe("distill")
    assert build_recipe(yaml.safe_load(yaml.safe_dump(recipe.as_json()))) == recipe
