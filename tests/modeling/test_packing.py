"""The encoder without padding: the same values at all real tokens, and no text that sees another."""

import itertools

import pytest
import torch
from transformers import DataCollatorWithFlattening

from inhibidistilbert import (
    InhibiDistilBertForSequenceClassification,
    InhibiDistilBertForTokenClassification,
    InhibiDistilBertModel,
    quantize,
)
from inhibidistilbert.modeling import modeling_inhibidistilbert as modeling
from tests.helpers.tiny import tiny_config

ROWS = ["111111", "110000", "000111", "010110", "000000", "000001"]
MASK = torch.tensor([[int(visible) for visible in row] for row in ROWS])
LENGTHS = [6, 2, 3, 1, 2]
FORMS = {
    "sum": {},
    "mean": {"length_normalization": "mean", "scalars_per_head": True},
    "sqrt": {"length_normalization": "sqrt"},
    "gate": {"inhibition": "gate", "center": "least", "length_normalization": "passed"},
    "two radii": {"radii": 2, "alpha_init": [0.1, 0.6]},
}


def make(kind=InhibiDistilBertModel, implementation="inhibitor", **fields):
    torch.manual_seed(0)
    model = kind(tiny_config(**fields)).eval()
    model.set_attn_implementation(implementation)
    return model


def ids(rows: int = len(MASK), length: int = MASK.shape[1]) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(5, 20, (rows, length))


@pytest.fixture
def packings(monkeypatch) -> list:
    """What the model asked for, and whether it got it."""
    found = []
    ask = modeling.without_padding
    monkeypatch.setattr(modeling, "without_padding", lambda *arguments: found.append(ask(*arguments)) or found[-1])
    return found


def with_padding(model, **batch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling, "without_padding", lambda *_: None)
        return model(**batch)


@pytest.mark.parametrize("form", FORMS)
def test_states_at_real_tokens_are_those_with_padding(form, packings):
    model = make(**FORMS[form])
    batch = {"input_ids": ids(), "attention_mask": MASK}
    states = model(**batch).last_hidden_state
    assert packings[0].lengths == MASK.sum(-1).tolist()
    expected = with_padding(model, **batch).last_hidden_state
    torch.testing.assert_close(states[MASK.bool()], expected[MASK.bool()], rtol=0, atol=2e-6)
    assert not states[~MASK.bool()].any()


def test_gradients_are_those_with_padding(packings):
    model = make(InhibiDistilBertForSequenceClassification, **FORMS["gate"])
    batch = {"input_ids": ids(), "attention_mask": MASK, "labels": torch.tensor([0, 1, 1, 0, 1, 0])}
    found = torch.autograd.grad(model(**batch).loss, list(model.parameters()))
    right = torch.autograd.grad(with_padding(model, **batch).loss, list(model.parameters()))
    assert packings[0] is not None
    for gradient, other in zip(found, right, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-7)


def test_int8(packings):
    model = quantize(make(InhibiDistilBertForSequenceClassification, **FORMS["mean"]))
    batch = {"input_ids": ids(), "attention_mask": MASK}
    logits = model(**batch).logits
    assert packings[0] is not None
    torch.testing.assert_close(logits, with_padding(model, **batch).logits, rtol=0, atol=1e-6)


def test_training_with_dropout_and_checkpointing(packings):
    model = make(InhibiDistilBertForSequenceClassification, attention_dropout=0.3).train()
    model.gradient_checkpointing_enable()
    batch = {"input_ids": ids(), "attention_mask": MASK, "labels": torch.tensor([0, 1, 1, 0, 1, 0])}
    torch.manual_seed(2)
    checkpointed = torch.autograd.grad(model(**batch).loss, list(model.parameters()))
    model.gradient_checkpointing_disable()
    torch.manual_seed(2)
    plain = torch.autograd.grad(model(**batch).loss, list(model.parameters()))
    assert None not in packings
    for gradient, other in zip(checkpointed, plain, strict=True):
        torch.testing.assert_close(gradient, other)


REASONS = ("eager", "hidden states", "attentions", "hook", "no token", "chunks", "little padding")


@pytest.mark.parametrize("reason", REASONS)
def test_padding_is_left_in_where_it_would_be_missed(reason, packings):
    model = make(chunk_size_feed_forward=2 if reason == "chunks" else 0)
    batch = {"input_ids": ids(), "attention_mask": MASK.clone()}
    seen = []
    if reason == "eager":
        model.set_attn_implementation("eager")
    elif reason == "hook":
        model.transformer.layer[0].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    elif reason == "no token":
        batch["attention_mask"][:] = 0
    elif reason == "little padding":
        batch["attention_mask"][:] = 1
        batch["attention_mask"][0, 0] = 0
    elif reason in ("hidden states", "attentions"):
        batch[f"output_{reason.replace(' ', '_')}"] = True
    outputs = model(**batch)
    assert not any(packings)
    assert not outputs.last_hidden_state[batch["attention_mask"] == 0].any()  # as without padding
    if reason == "hook":
        assert seen[0] == (*MASK.shape, model.config.dim)
    if reason == "hidden states":
        assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
        # The hooks of transformers stay, and hinder nothing.
        assert all(states.shape == (*MASK.shape, model.config.dim) for states in outputs.hidden_states)
        model(input_ids=ids(), attention_mask=MASK)
        assert packings[-1] is not None


@torch.no_grad()
@pytest.mark.parametrize("given", ["positions", "boundaries"])
def test_an_exported_model_takes_other_texts_in_one_row(given):
    model, row = make(n_layers=1, **FORMS["mean"]), ids(1, 7)

    def texts(*lengths: int) -> dict:
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        boundaries = {"cu_seq_lens_q": torch.tensor([0, *itertools.accumulate(lengths)])} if given == "boundaries" else {}
        return {"input_ids": row, "position_ids": positions, **boundaries}

    program = torch.export.export(model, (), texts(3, 4), strict=False).module()
    for batch in (texts(3, 4), texts(5, 2)):
        states, expected = program(**batch).last_hidden_state, model(**batch).last_hidden_state
        torch.testing.assert_close(states, expected, rtol=0, atol=2e-6)


def flattened(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The texts of LENGTHS in one row, and their positions."""
    texts = [row[:length] for row, length in zip(rows, LENGTHS, strict=True)]
    return torch.cat(texts)[None], torch.cat([torch.arange(length) for length in LENGTHS])[None]


@pytest.mark.parametrize("given", ["positions", "boundaries"])
@pytest.mark.parametrize("implementation", ["inhibitor", "eager", "inhibitor_cpu"])
def test_texts_in_one_row_do_not_see_each_other(implementation, given):
    model = make(implementation=implementation, **FORMS["mean"])
    rows = ids(len(LENGTHS))
    row, positions = flattened(rows)
    more = {}
    if given == "boundaries":
        boundaries = torch.tensor([0, *itertools.accumulate(LENGTHS)], dtype=torch.int32)
        more = {"cu_seq_lens_q": boundaries, "cu_seq_lens_k": boundaries, "max_length_q": 6, "max_length_k": 6}
    states = model(row, position_ids=positions, **more).last_hidden_state[0]
    alone = [model(rows[i : i + 1, :length]).last_hidden_state[0] for i, length in enumerate(LENGTHS)]
    torch.testing.assert_close(states, torch.cat(alone), rtol=0, atol=2e-6)


def test_a_classifier_gives_each_text_of_a_row_its_logits():
    model, rows = make(InhibiDistilBertForSequenceClassification), ids(len(LENGTHS))
    row, positions = flattened(rows)
    alone = [model(rows[i : i + 1, :length]).logits for i, length in enumerate(LENGTHS)]
    torch.testing.assert_close(model(row, position_ids=positions).logits, torch.cat(alone), rtol=0, atol=2e-6)


def test_it_trains_on_what_transformers_collates():
    model, rows = make(InhibiDistilBertForTokenClassification), ids(len(LENGTHS))
    texts = [{"input_ids": row[:n].tolist(), "labels": [1] * n} for row, n in zip(rows, LENGTHS, strict=True)]
    batch = DataCollatorWithFlattening(return_flash_attn_kwargs=True)(texts)
    found = torch.autograd.grad(model(**batch).loss, list(model.parameters()))
    # The collator gives the first token of each text no label.
    losses, labelled = [], 0
    for row, length in zip(rows, LENGTHS, strict=True):
        if length > 1:
            labels = torch.tensor([[-100] + [1] * (length - 1)])
            losses.append(model(row[None, :length], labels=labels).loss * (length - 1))
            labelled += length - 1
    right = torch.autograd.grad(sum(losses) / labelled, list(model.parameters()))
    for gradient, other in zip(found, right, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("positions", [[5, 4, 3, 2, 1, 0], [0, 2, 4, 0, 2, 4], [2, 3, 4, 5, 6, 7]])
def test_positions_of_another_kind_are_those_of_one_text(positions):
    model = make()
    given = torch.tensor([positions])
    expected = with_padding(model, input_ids=ids(1), position_ids=given, attention_mask=torch.ones(1, 6))
    torch.testing.assert_close(model(ids(1), position_ids=given).last_hidden_state, expected.last_hidden_state)


def test_boundaries_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"cu_seq_lens_q must be integers that rise from 0 to 6.*got \[0, 7\]"):
        make()(ids(1), cu_seq_lens_q=torch.tensor([0, 7]))
