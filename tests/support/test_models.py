"""Every weight is the checkpoint's, unless a caller lets it be new; each failure is one error that names the source."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.processors import BertProcessing
from transformers import AutoModel, BertConfig, BertModel, PreTrainedTokenizerFast

from inhibidistilbert import (
    InhibiDistilBertConfig,
    InhibiDistilBertForMultipleChoice,
    InhibiDistilBertForSequenceClassification,
)
from inhibidistilbert.support.errors import UserError
from inhibidistilbert.support.models import (
    any_weight,
    check_vocabulary,
    has_tokenizer,
    head_weight,
    load_config,
    load_model,
    load_tokenizer,
)
from tests.helpers.publishable import edit_json, edit_weights
from tests.helpers.tiny_sentiment import write_tiny_checkpoint

SIZES = {"vocab_size": 11, "max_position_embeddings": 8}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = InhibiDistilBertConfig(dim=8, hidden_dim=8, n_heads=2, n_layers=1, num_labels=3, **SIZES)
    InhibiDistilBertForSequenceClassification(config).save_pretrained(tmp_path)
    return tmp_path


def test_what_a_source_may_lack_is_named(tmp_path: Path):
    config = InhibiDistilBertConfig(dim=8, hidden_dim=8, n_heads=2, n_layers=1, **SIZES)
    InhibiDistilBertForSequenceClassification(config).distilbert.save_pretrained(tmp_path)
    kind = InhibiDistilBertForSequenceClassification
    for allowed in (any_weight, head_weight):
        found = load_model(kind, tmp_path, "SOURCE", may_lack=allowed)
        assert found.missing == {
            f"{name}.{part}" for name in ("classifier", "pre_classifier") for part in ("weight", "bias")
        }
        assert not found.unexpected
    with pytest.raises(
        UserError, match=r"^SOURCE has no trained head 'SequenceClassification', or lacks .*weight\): train\.$"
    ):
        load_model(kind, tmp_path, "SOURCE", remedy="train")


def test_what_may_have_another_shape_is_named(folder: Path):
    kind = InhibiDistilBertForSequenceClassification
    with pytest.raises(
        UserError, match=r"^SOURCE does .*: classifier\.bias has shape \(3,\) .* \(2,\) by config\.json \(2 such"
    ):
        load_model(kind, folder, "SOURCE", num_labels=2)
    assert load_model(kind, folder, "SOURCE", num_labels=2, may_differ=head_weight).model.config.num_labels == 2
    with pytest.raises(UserError, match=r"word_embeddings\.weight has shape"):
        load_model(AutoModel, folder, "SOURCE", vocab_size=12, may_differ=head_weight)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A BERT without a pooler and without a tokenizer."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    BertModel(BertConfig(**sizes, **SIZES), add_pooling_layer=False).save_pretrained(tmp_path)
    return tmp_path


def test_a_pooler_is_no_part_of_the_encoder(bert: Path):
    found = load_model(BertModel, bert, "SOURCE", may_lack=head_weight)
    assert found.missing == {"pooler.dense.weight", "pooler.dense.bias"}
    with pytest.raises(UserError, match=r"^SOURCE lacks weights \(pooler"):
        load_model(BertModel, bert, "SOURCE")


def test_what_does_not_load_is_one_line(folder: Path):
    (folder / "model.safetensors").write_bytes(b"no weights")
    (folder / "tokenizer.json").write_text("{")
    for load in (
        lambda: load_model(InhibiDistilBertForMultipleChoice, folder, "SOURCE"),
        lambda: load_config(folder / "missing", "SOURCE"),
        lambda: load_tokenizer(folder, "SOURCE"),
    ):
        with pytest.raises(UserError, match=r"^SOURCE(: its tokenizer cannot be read| does not load): .") as caught:
            load()
        assert "\n" not in str(caught.value)


def test_a_tokenizer_that_transformers_makes_up_is_none(bert: Path):
    assert not has_tokenizer(bert)
    with pytest.raises(UserError, match="SOURCE has no tokenizer"):
        load_tokenizer(bert, "SOURCE")


@pytest.mark.parametrize("name", ["a\nb", "a b/c", "x" * 97])
def test_what_is_neither_a_folder_nor_a_hub_id_has_no_tokenizer_to_look_for(name: str):
    with pytest.raises(UserError, match=r"cannot look for its tokenizer: .*Repo id") as caught:
        has_tokenizer(name)
    assert "\n" not in str(caught.value)


def test_a_configuration_that_asks_for_more_memory_than_there_is(folder: Path):
    """Nothing is allocated for it: 3.2 TB here."""
    edit_json(folder / "config.json", lambda config: config.update(vocab_size=10**8, hidden_dim=10**8))
    with pytest.raises(UserError, match=r"^SOURCE does not load: .* has shape \(.*100000000.* by config\.json"):
        load_model(InhibiDistilBertForSequenceClassification, folder, "SOURCE")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(folder: Path, value: float):
    edit_weights(folder, lambda weights: weights["distilbert.transformer.layer.0.ffn.lin1.bias"].fill_(value))
    with pytest.raises(UserError, match=rf"^SOURCE is damaged, .*layer\.0\.ffn\.lin1\.bias must be finite, got {value}"):
        load_model(InhibiDistilBertForSequenceClassification, folder, "SOURCE")


def test_a_tokenizer_that_fails_on_texts(tmp_path: Path):
    backend = Tokenizer(Unigram([("a", 0.0)]))  # without a token for what it does not know
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"^SOURCE does not load: its tokenizer fails on a text: .*unk_id"):
        load_tokenizer(tmp_path, "SOURCE")


def test_ids_that_no_token_has(tmp_path: Path):
    write_tiny_checkpoint(tmp_path)
    tokenizer = load_tokenizer(tmp_path, "SOURCE")
    check_vocabulary(tokenizer, InhibiDistilBertConfig(vocab_size=19))
    tokenizer.backend_tokenizer.post_processor = BertProcessing(("[SEP]", 40), ("[CLS]", 2))
    with pytest.raises(UserError, match="SOURCE: the tokenizer gives the id 40, but the model's vocabulary holds 19"):
        check_vocabulary(tokenizer, InhibiDistilBertConfig(vocab_size=19), "SOURCE: ")


def test_a_tokenizer_of_another_model():
    with pytest.raises(UserError, match="SOURCE: the tokenizer has 3 tokens but the model's vocabulary holds 2"):
        check_vocabulary("abc", InhibiDistilBertConfig(vocab_size=2), "SOURCE: ")
