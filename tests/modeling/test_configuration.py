"""InhibiDistilBertConfig: DistilBERT's fields, those of inhibitor attention, and what is refused."""

import math

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from tiny import tiny_config
from transformers import AutoConfig, DistilBertConfig

from inhibidistilbert import InhibiDistilBertConfig

pytestmark = pytest.mark.portable

OWN_FIELDS = {
    "centered": True,
    "signed": True,
    "alpha_init": 0.5,
    "beta_init": 1.0,
    "gamma_init": 1.0,
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
        ({"length_normalization": "max"}, "length_normalization must be one of 'none', 'sqrt', 'mean', got 'max'"),
        ({"alpha_init": math.nan}, "alpha_init must be finite, got nan"),
        ({"beta_init": math.inf}, "beta_init must be finite, got inf"),
        ({"gamma_init": -math.inf}, "gamma_init must be finite, got -inf"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_values_are_refused_by_name(fields, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        tiny_config(**fields)


@pytest.mark.parametrize(
    "fields", [{"alpha_init": "0.5"}, {"n_heads": "4"}, {"centered": "yes"}, {"quantized": "int8"}], ids=str
)
def test_values_of_a_wrong_type_are_refused_by_name(fields):
    with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(fields))):
        tiny_config(**fields)


def test_negative_and_zero_scalars_are_fine():
    config = tiny_config(alpha_init=-3, beta_init=0, gamma_init=-0.5)
    assert (config.alpha_init, config.beta_init, config.gamma_init) == (-3, 0, -0.5)
