"""The published sizes and the label maps in hub_configs."""

import json
from importlib.resources import files

import pytest
import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification, DistilBertModel

from inhibidistilbert import InhibiDistilBertConfig, InhibiDistilBertForSequenceClassification, InhibiDistilBertModel
from inhibidistilbert.conversion import student_from
from inhibidistilbert.distillation.recipe import read_recipe

HUB_CONFIGS = files("inhibidistilbert") / "hub_configs"
LABELS = json.loads((HUB_CONFIGS / "labels.json").read_text(encoding="utf-8"))

# size: parameters of the encoder, of the sequence classifier with two labels, and of those how many alpha, beta and gamma.
PARAMETERS = {
    "base": (66_363_096, 66_955_226, 216),
    "small": (22_564_824, 22_713_434, 216),
    "tiny": (4_567_460, 4_584_230, 36),
}


def read_config(size: str) -> InhibiDistilBertConfig:
    return InhibiDistilBertConfig.from_pretrained(str(HUB_CONFIGS / size))


def parameter_count(model_class: type, config) -> int:
    """Built on the meta device: the count needs no memory."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in model_class(config).parameters())


@pytest.mark.parametrize("size", PARAMETERS)
class TestSizes:
    def test_file_names_its_model_type_and_only_known_fields(self, size):
        written = json.loads((HUB_CONFIGS / size / "config.json").read_text(encoding="utf-8"))
        assert written["model_type"] == "inhibidistilbert"
        loaded = read_config(size).to_dict()
        assert {name: loaded[name] for name in written} == written
        assert written.keys() <= InhibiDistilBertConfig().to_dict().keys()

    def test_parameter_counts(self, size):
        config = read_config(size)
        encoder, classifier, _ = PARAMETERS[size]
        assert parameter_count(InhibiDistilBertModel, config) == encoder
        assert parameter_count(InhibiDistilBertForSequenceClassification, config) == classifier

    def test_a_size_is_distilberts_plus_the_scalars(self, size):
        config = read_config(size)
        same_size = DistilBertConfig(
            n_layers=config.n_layers, n_heads=config.n_heads, dim=config.dim, hidden_dim=config.hidden_dim
        )
        encoder, classifier, scalars = PARAMETERS[size]
        assert 3 * config.n_layers * (config.n_heads if config.scalars_per_head else 1) == scalars
        assert parameter_count(DistilBertModel, same_size) + scalars == encoder
        assert parameter_count(DistilBertForSequenceClassification, same_size) + scalars == classifier


def test_base_is_the_default_configuration_but_for_what_the_study_recommends():
    ignored = {"architectures", "transformers_version", "scalars_per_head", "length_normalization", "beta_init"}
    base, default = read_config("base").to_dict(), InhibiDistilBertConfig().to_dict()
    assert {k: v for k, v in base.items() if k not in ignored} == {k: v for k, v in default.items() if k not in ignored}


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("base", {"n_layers": 6, "dim": 768, "n_heads": 12, "hidden_dim": 3072, "beta_init": 1.5}),
        ("small", {"n_layers": 6, "dim": 384, "n_heads": 12, "hidden_dim": 1536, "beta_init": 1.5}),
        ("tiny", {"n_layers": 3, "dim": 128, "n_heads": 4, "hidden_dim": 512, "beta_init": 2.5}),
    ],
)
def test_published_sizes(size, expected):
    config = read_config(size)
    assert {name: getattr(config, name) for name in expected} == expected


RECOMMENDED = {"scalars_per_head": True, "length_normalization": "mean", "beta_init": 1.5}


def test_whatever_makes_a_new_student_makes_what_the_study_recommends(tmp_path):
    """The sizes, the recipes that copy a teacher, and `convert` say one thing."""
    tiny = {"vocab_size": 7, "n_layers": 1, "n_heads": 1, "dim": 2, "hidden_dim": 2}
    DistilBertModel(DistilBertConfig(**tiny)).save_pretrained(tmp_path)
    made = {size: read_config(size) for size in PARAMETERS}
    made["convert"] = student_from(tmp_path)[0].config
    found = {maker: {name: getattr(config, name) for name in RECOMMENDED} for maker, config in made.items()}
    for recipe in ("distill", "study", "study-gpu"):
        config = read_recipe(recipe, []).student.config
        found[recipe] = {name: config[name] for name in RECOMMENDED}
    assert found == dict.fromkeys(found, RECOMMENDED) | {"tiny": RECOMMENDED | {"beta_init": 2.5}}


@pytest.mark.parametrize("recipe", ["authors", "study-authors"])
def test_the_authors_recipes_keep_the_published_form(recipe):
    config = read_recipe(recipe, []).student.config
    published = {"scalars_per_head": False, "length_normalization": "none", "beta_init": 1.0}
    assert {name: config[name] for name in published} == published


@pytest.mark.parametrize("task", ["sentiment", "sst2", "imdb", "rotten_tomatoes"])
def test_binary_sentiment_is_negative_then_positive(task):
    config = InhibiDistilBertConfig(**LABELS[task])
    assert config.id2label == {0: "NEGATIVE", 1: "POSITIVE"}
    assert config.label2id == {"NEGATIVE": 0, "POSITIVE": 1}


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("cola", ["unacceptable", "acceptable"]),
        ("mrpc", ["not_equivalent", "equivalent"]),
        ("qqp", ["not_duplicate", "duplicate"]),
        ("mnli", ["entailment", "neutral", "contradiction"]),
        ("qnli", ["entailment", "not_entailment"]),
        ("rte", ["entailment", "not_entailment"]),
        ("wnli", ["not_entailment", "entailment"]),
    ],
)
def test_glue_tasks_keep_the_datasets_names_and_order(task, names):
    """The order of the `label` feature of each configuration of the dataset `nyu-mll/glue`."""
    assert InhibiDistilBertConfig(**LABELS[task]).id2label == dict(enumerate(names))


def test_stsb_is_regression_with_one_label():
    config = InhibiDistilBertConfig(**LABELS["stsb"])
    assert (config.problem_type, config.num_labels) == ("regression", 1)


@pytest.mark.parametrize("task", LABELS)
def test_label_maps_are_contiguous_and_classify(task):
    labels = LABELS[task]
    assert list(labels["id2label"]) == [str(number) for number in range(len(labels["id2label"]))]
    assert labels["label2id"] == {name: int(number) for number, name in labels["id2label"].items()}
    assert len(labels["label2id"]) == len(labels["id2label"])
    assert labels["problem_type"] == ("regression" if task == "stsb" else "single_label_classification")
    model = InhibiDistilBertForSequenceClassification(
        InhibiDistilBertConfig(vocab_size=7, n_layers=1, n_heads=1, dim=2, hidden_dim=2, **labels)
    )
    assert model(torch.tensor([[1, 2]])).logits.shape == (1, len(labels["id2label"]))
