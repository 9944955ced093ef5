"""InhibiDistilBertConfig: DistilBERT's fields, those of inhibitor attention, and what is refused."""

import json
import math

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig, DistilBertConfig

from inhibidistilbert import InhibiDistilBertConfig, InhibiDistilBertModel
from tests.helpers.tiny import tiny_config

pytestmark = pytest.mark.portable

OWN_FIELDS = {
    "centered": True,
    "center": "mean",
    "signed": True,
    "inhibition": "threshold",
    "radii": 1,
    "alpha_init": 0.5,
    "beta_init": 1.0,
    "gamma_init": 1.0,
    "delta_init": 1.0,
    "scalars_per_head": False,
    "length_normalization": "none",
    "quantized": False,
    "int8_weights": False,
}


def test_defaults_are_distilberts_and_the_papers():
    ours, theirs = InhibiDistilBertConfig().to_dict(), DistilBertConfig().to_dict()
    assert ours.pop("model_type") == "inhibidistilbert"
    assert theirs.pop("model_type") == "distilbert"
    assert ours == theirs | OWN_FIELDS


def test_the_common_names_of_sizes_work():
    config = InhibiDistilBertConfig(hidden_size=64, num_attention_heads=8, num_hidden_layers=3)
    assert (config.dim, config.n_heads, config.n_layers) == (64, 8, 3)
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (64, 8, 3)


def test_saved_configuration_comes_back(tmp_path):
    fields = {
        "centered": False,
        "signed": False,
        "alpha_init": -0.25,
        "beta_init": 0.1,
        "gamma_init": -1.5,
        "scalars_per_head": True,
        "length_normalization": "mean",
        "quantized": True,
        "int8_weights": True,
    }
    config = tiny_config(**fields, id2label={0: "a", 1: "b", 2: "c"}, sinusoidal_pos_embds=True)
    config.save_pretrained(tmp_path)
    for loaded in (InhibiDistilBertConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is InhibiDistilBertConfig
        assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict()
        assert {name: getattr(loaded, name) for name in fields} == fields


def test_a_form_beyond_the_paper_comes_back(tmp_path):
    fields = {
        "center": "least",
        "inhibition": "gate",
        "radii": 2,
        "alpha_init": [-0.5, 0.1],
        "beta_init": 1,
        "gamma_init": [1, 2.0],
        "delta_init": 0.75,
        "length_normalization": "passed",
    }
    tiny_config(**fields).save_pretrained(tmp_path)
    for loaded in (InhibiDistilBertConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert {name: getattr(loaded, name) for name in fields} == fields


def test_a_distilbert_configuration_is_read_with_default_scalars(tmp_path):
    DistilBertConfig(dim=48, n_heads=6, sinusoidal_pos_embds=True).save_pretrained(tmp_path)
    config = InhibiDistilBertConfig.from_pretrained(tmp_path, beta_init=0.5)
    assert (config.dim, config.n_heads, config.sinusoidal_pos_embds) == (48, 6, True)
    assert {name: getattr(config, name) for name in OWN_FIELDS} == OWN_FIELDS | {"beta_init": 0.5}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_heads": 5}, "n_heads must divide dim evenly, got n_heads=5 and dim=32"),
        ({"dim": 30}, "n_heads must divide dim evenly, got n_heads=4 and dim=30"),
        ({"n_heads": 0}, "n_heads must be at least 1, got 0"),
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
        ({"max_position_embeddings": -1}, "max_position_embeddings must be at least 1, got -1"),
        ({"length_normalization": "max"}, "length_normalization must be one of 'none', 'sqrt', 'mean', 'passed', got"),
        ({"center": "median"}, "center must be one of 'mean', 'least', got 'median'"),
        ({"inhibition": "door"}, "inhibition must be one of 'threshold', 'gate', got 'door'"),
        ({"inhibition": "gate", "signed": False}, "signed must be true for inhibition='gate'"),
        ({"center": "least", "centered": False}, "centered must be true for center='least'"),
        ({"radii": 0}, "radii must be at least 1, got 0"),
        ({"delta_init": math.inf}, "delta_init must be finite, got inf"),
        ({"radii": 2, "gamma_init": [1, math.nan]}, r"gamma_init must be finite, got \[1, nan\]"),
        ({"radii": 2, "alpha_init": [1.0]}, r"alpha_init must be a number, or one for each of 2 radii, got \[1.0\]"),
        ({"beta_init": [1.0, 2.0]}, r"beta_init must be a number, or one for each of 1 radii, got \[1.0, 2.0\]"),
        ({"quantized": True, "radii": 2}, "quantized must be false for several radii, .* got radii=2"),
        ({"alpha_init": math.nan}, "alpha_init must be finite, got nan"),
        ({"beta_init": math.inf}, "beta_init must be finite, got inf"),
        ({"gamma_init": -math.inf}, "gamma_init must be finite, got -inf"),
        ({"n_layers": 0}, "n_layers must be at least 1, got 0"),
        ({"n_layers": -1}, "n_layers must be at least 1, got -1"),
        ({"n_layers": 10**9}, "n_layers must be at most 1000, got 1000000000"),
        ({"hidden_dim": 10**400}, "hidden_dim must be at most 100000000, got 1000"),
        ({"alpha_init": 10**400}, "alpha_init must be finite, got 1000"),
        ({"dropout": 1.5}, "dropout must be at least 0 and below 1, got 1.5"),
        ({"attention_dropout": 1}, "attention_dropout must be at least 0 and below 1, got 1"),
        ({"qa_dropout": -0.1}, "qa_dropout must be at least 0 and below 1, got -0.1"),
        ({"seq_classif_dropout": math.nan}, "seq_classif_dropout must be at least 0 and below 1, got nan"),
        ({"activation": "gelo"}, "activation must be one of .*'gelu'.*, got 'gelo'"),
        ({"initializer_range": -0.1}, "initializer_range must be at least 0 and finite, got -0.1"),
        ({"pad_token_id": 99}, "pad_token_id must be a token of the vocabulary, 0 to 98, got 99"),
        ({"pad_token_id": -1}, "pad_token_id must be a token of the vocabulary, 0 to 98, got -1"),
        ({"eos_token_id": [3, 99]}, r"eos_token_id must be a token of the vocabulary, 0 to 98, got \[3, 99\]"),
        ({"problem_type": "classification"}, "problem_type must be one of 'regression', .*, got 'classification'"),
        ({"chunk_size_feed_forward": 1.5}, "chunk_size_feed_forward must be an integer of at least 0, got 1.5"),
        ({"chunk_size_feed_forward": -1}, "chunk_size_feed_forward must be an integer of at least 0, got -1"),
        ({"output_hidden_states": 3}, "output_hidden_states must be true or false, got 3"),
        ({"is_decoder": True}, "is_decoder must be false, got True: this model is an encoder"),
        ({"architectures": "InhibiDistilBertModel"}, "architectures must be a list of names, got 'Inhibi"),
        (
            {"id2label": {0: "a", 1: "b"}, "label2id": {"b": 0, "a": 1}},
            "label2id gives 'b' the label 0, but id2label calls that 'a'",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_values_are_refused_by_name(fields, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        tiny_config(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"alpha_init": "0.5"},
        {"delta_init": [1.0]},
        {"radii": 2.0},
        {"center": True},
        {"n_heads": "4"},
        {"centered": "yes"},
        {"quantized": "int8"},
    ],
    ids=str,
)
def test_values_of_a_wrong_type_are_refused_by_name(fields):
    with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(fields))):
        tiny_config(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_labels": 0, "id2label": None}, "num_labels must be an integer of at least 1, got 0"),
        ({"num_labels": "2"}, "num_labels must be an integer of at least 1, got '2'"),
        ({"num_labels": 10**9, "id2label": None}, "num_labels must be at most 1000000, got 1000000000"),
        ({"num_labels": 2, "id2label": 2}, "id2label must give numbers names"),
        ({"num_labels": 2.0, "id2label": None}, "num_labels must be an integer of at least 1, got 2.0"),
        ({"id2label": {}}, r"id2label must name the labels 0, 1, 2, .* got \{\}"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label must name the labels 0, 1, 2, … without a gap"),
        ({"id2label": ["a", "b"]}, "id2label must give numbers names"),
        ({"id2label": {"first": "a"}}, "id2label must give numbers names"),
        ({"dtype": "int8"}, "dtype must be one of 'float64', .*, got 'int8'"),
        ({"torch_dtype": "float23"}, "torch_dtype must be one of 'float64', .*, got 'float23'"),
        ({"num_labels": 3, "id2label": {"0": "a", "1": "b"}}, "num_labels is 3, but id2label names 2 labels"),
        ({"n_layers": 0}, "config.json: n_layers must be at least 1, got 0"),
        ({"n_layers": 6.0}, "config.json: Field 'n_layers' expected int, got float"),
        ({"per_layer_config": {"0": {"n_heads": 2}}}, "per_layer_config must be left out"),
        ({"model_type": "bert"}, "model_type must be 'inhibidistilbert', or 'distilbert' .* got 'bert'"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_a_file_that_transformers_would_read_as_something_else_is_refused(tmp_path, fields, message):
    config = tiny_config().to_dict() | fields
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        InhibiDistilBertConfig.from_pretrained(tmp_path)


def test_another_number_of_labels_asked_for_on_loading(tmp_path):
    """As fine-tuning does; it is the file alone that must agree with itself."""
    tiny_config(id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1}).save_pretrained(tmp_path)
    for read in (InhibiDistilBertConfig, AutoConfig):
        assert read.from_pretrained(tmp_path, num_labels=3).id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}


def test_fields_set_later_are_checked_by_the_model(tmp_path):
    config = tiny_config()
    InhibiDistilBertModel(config).save_pretrained(tmp_path)
    config.n_layers = 0
    with pytest.raises(ValueError, match=r"^n_layers must be at least 1, got 0"):
        InhibiDistilBertModel(config)
    with pytest.raises(ValueError, match=r"^dropout must be at least 0 and below 1, got 2"):
        InhibiDistilBertModel.from_pretrained(tmp_path, dropout=2)


def test_negative_and_zero_scalars_are_fine():
    config = tiny_config(alpha_init=-3, beta_init=0, gamma_init=-0.5)
    assert (config.alpha_init, config.beta_init, config.gamma_init) == (-3, 0, -0.5)
