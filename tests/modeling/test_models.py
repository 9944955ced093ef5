"""The model classes: DistilBERT in everything but attention, and what inhibitor attention adds.

Models are tiny, random and in float32 unless a test says otherwise.
"""

import copy
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.models.distilbert import modeling_distilbert

from inhibidistilbert import InhibiDistilBertForMaskedLM, InhibiDistilBertModel, inhibitor_attention
from inhibidistilbert.modeling import modeling_inhibidistilbert
from tests.helpers.tiny import (
    TASKS,
    assert_saving_changes_nothing,
    distilbert_class,
    first_output,
    labels_for,
    model_class,
    tiny_config,
    tiny_distilbert,
    tiny_model,
    tokens,
)

pytestmark = pytest.mark.portable

HEADS = TASKS[1:]
SCALARS = ("alpha", "beta", "gamma")
IMPLEMENTATIONS = ("inhibitor", "eager")
HALF_TYPES = [pytest.param(torch.bfloat16, id="bf16"), pytest.param(torch.float16, id="fp16")]


def scalars_of(model) -> dict[str, Tensor]:
    """alpha, beta and gamma of every layer by their full name."""
    return {name: p for name, p in model.named_parameters() if name.rpartition(".")[2] in SCALARS}


def difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


# DistilBERT in everything but attention


@pytest.mark.parametrize("task", TASKS)
def test_state_dict_is_distilberts_plus_the_scalars(task):
    ours = {name: tensor.shape for name, tensor in tiny_model(task).state_dict().items()}
    theirs = {name: tensor.shape for name, tensor in tiny_distilbert(task).state_dict().items()}
    prefix = "" if task == "Model" else "distilbert."
    scalars = {f"{prefix}transformer.layer.{layer}.attention.{name}" for layer in range(2) for name in SCALARS}
    assert ours.keys() - theirs.keys() == scalars
    assert {name: ours[name] for name in theirs} == theirs


@pytest.fixture
def softmax_attention(monkeypatch):
    """Gives our models DistilBERT's own attention function as "eager", so that nothing but attention is left to differ."""
    monkeypatch.setitem(
        modeling_inhibidistilbert.ALL_ATTENTION_FUNCTIONS, "eager", modeling_distilbert.eager_attention_forward
    )


def twins(task: str, **fields):
    """DistilBERT and our model, with the same weights and the same attention."""
    theirs = tiny_distilbert(task, **fields)
    ours = tiny_model(task, attn_implementation="eager", **fields)
    assert set(ours.load_state_dict(theirs.state_dict(), strict=False).missing_keys) == set(scalars_of(ours))
    return ours, theirs


@pytest.mark.usefixtures("softmax_attention")
class TestDistilBertParity:
    @pytest.mark.parametrize("task", TASKS)
    def test_hidden_states_outputs_and_loss_of_every_head(self, task):
        ours, theirs = twins(task)
        shape = (3, 2, 9) if task == "ForMultipleChoice" else (3, 9)
        input_ids = tokens(*shape)
        attention_mask = (torch.arange(9) < torch.tensor([9, 5, 7])[:, None]).long()
        if task == "ForMultipleChoice":
            attention_mask = attention_mask[:, None].repeat(1, 2, 1)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        if task != "Model":
            batch |= labels_for(task, input_ids)

        def zero_at_padding(module, inputs, output):
            """As our last hidden states are, in every form."""
            output.last_hidden_state = output.last_hidden_state * attention_mask.flatten(0, -2)[..., None]

        theirs.base_model.transformer.register_forward_hook(zero_at_padding)
        with torch.no_grad():
            mine, reference = (model(**batch, output_hidden_states=True) for model in (ours, theirs))
        assert mine.keys() == reference.keys()
        assert len(mine.hidden_states) == len(reference.hidden_states) == 3
        for a, b in zip(mine.hidden_states, reference.hidden_states, strict=True):
            assert difference(a, b) < 1e-6
        assert difference(first_output(mine), first_output(reference)) < 1e-5
        if task != "Model":
            assert difference(mine.loss, reference.loss) < 1e-6

    @pytest.mark.parametrize("fields", [{"sinusoidal_pos_embds": True}, {"activation": "relu"}], ids=["sinusoidal", "relu"])
    def test_configuration_fields_mean_the_same(self, fields):
        ours, theirs = twins("Model", **fields)
        input_ids = tokens(2, 9)
        assert difference(ours(input_ids).last_hidden_state, theirs(input_ids).last_hidden_state) < 1e-6

    def test_position_ids_and_inputs_embeds(self):
        ours, theirs = twins("Model")
        batch = {"inputs_embeds": torch.randn(2, 5, 32), "position_ids": torch.tensor([[3, 1, 4, 1, 5]])}
        assert difference(ours(**batch).last_hidden_state, theirs(**batch).last_hidden_state) < 1e-6

    @pytest.mark.parametrize(
        ("num_labels", "problem_type", "labels"),
        [
            pytest.param(1, None, torch.tensor([0.5, -1.0, 2.0]), id="regression-1"),
            pytest.param(3, "regression", torch.linspace(-1, 1, 9).view(3, 3), id="regression-3"),
            pytest.param(3, None, torch.tensor([2, 0, 1]), id="single-label"),
            pytest.param(3, None, torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]]), id="multi-label"),
        ],
    )
    def test_problem_types(self, num_labels, problem_type, labels):
        fields = {"num_labels": num_labels, "problem_type": problem_type}
        ours, theirs = twins("ForSequenceClassification", **fields)
        mine, reference = (model(tokens(3, 6), labels=labels) for model in (ours, theirs))
        assert mine.logits.shape == (3, num_labels)
        assert difference(mine.loss, reference.loss) < 1e-6
        assert ours.config.problem_type == theirs.config.problem_type

    def test_question_positions_outside_the_input_are_ignored(self):
        ours, theirs = twins("ForQuestionAnswering")
        positions = {"start_positions": torch.tensor([1, 99, 0]), "end_positions": torch.tensor([2, 99, 50])}
        mine, reference = (model(tokens(3, 6), **positions) for model in (ours, theirs))
        assert difference(mine.loss, reference.loss) < 1e-6
        start = torch.nn.functional.cross_entropy(mine.start_logits[[0, 2]], torch.tensor([1, 0]))
        end = torch.nn.functional.cross_entropy(mine.end_logits[[0]], torch.tensor([2]))
        assert difference(mine.loss, (start + end) / 2) < 1e-6


def test_masked_lm_loss_looks_at_labelled_tokens_only():
    model = tiny_model("ForMaskedLM")
    input_ids = tokens(2, 6)
    labels = torch.full_like(input_ids, -100)
    labels[0, 2], labels[1, 5] = 7, 11
    outputs = model(input_ids, labels=labels)
    log_probability = outputs.logits.log_softmax(-1)
    assert difference(outputs.loss, -(log_probability[0, 2, 7] + log_probability[1, 5, 11]) / 2) < 1e-6


# Loading a DistilBERT folder


def dirty_the_allocator() -> None:
    """Leave freed blocks of small sizes full of garbage, which the next uninitialised tensors are likely to get."""
    garbage = [torch.full((size,), 6e37) for size in (1, 2, 4, 8, 16, 32, 64, 1024) for _ in range(200)]
    del garbage


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, id="fp32"), *HALF_TYPES])
@pytest.mark.parametrize("per_head", [False, True], ids=["per_layer", "per_head"])
@pytest.mark.parametrize(
    "inits",
    [(0.5, 1.0, 1.0), (-0.1, 0.3, 1.7), (0.0, -2.0, -0.7)],
    ids=lambda inits: "alpha{}_beta{}_gamma{}".format(*inits),
)
def test_plain_distilbert_folder_gives_the_initial_scalars(tmp_path, inits, per_head, dtype):
    tiny_distilbert().save_pretrained(tmp_path)
    fields = dict(zip(("alpha_init", "beta_init", "gamma_init"), inits, strict=True)) | {"scalars_per_head": per_head}
    dirty_the_allocator()
    model = InhibiDistilBertModel.from_pretrained(tmp_path, dtype=dtype, **fields)
    assert len(scalars_of(model)) == 6
    for name, parameter in scalars_of(model).items():
        initial = torch.full((4 if per_head else 1,), fields[f"{name.rpartition('.')[2]}_init"], dtype=torch.float32)
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, initial), name
    assert model.transformer.layer[0].attention.q_lin.weight.dtype == dtype
    assert model(tokens(2, 5)).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("task", TASKS)
def test_plain_distilbert_folder_misses_the_scalars_only(tmp_path, task):
    theirs = tiny_distilbert(task)
    theirs.save_pretrained(tmp_path)
    model, info = model_class(task).from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == set(scalars_of(model))
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_a_head_starts_from_a_plain_encoder_folder(tmp_path):
    tiny_distilbert().save_pretrained(tmp_path)
    model, info = model_class("ForSequenceClassification").from_pretrained(tmp_path, output_loading_info=True)
    head = {f"{layer}.{part}" for layer in ("pre_classifier", "classifier") for part in ("weight", "bias")}
    assert info["missing_keys"] == set(scalars_of(model)) | head


# Padding


def arrange(sentence: Tensor, slots: list[int], length: int) -> dict[str, Tensor]:
    """One row of a batch: the sentence in `slots` with positions 0, 1, 2, …; elsewhere masked tokens that would be heard."""
    row = {
        "input_ids": tokens(length, seed=7),
        "attention_mask": torch.zeros(length, dtype=torch.long),
        "position_ids": torch.arange(length).flip(0),
    }
    row["input_ids"][slots] = sentence
    row["attention_mask"][slots] = 1
    row["position_ids"][slots] = torch.arange(len(slots))
    return row


SLOTS = {
    "right": [0, 1, 2, 3, 4, 5, 6],
    "left": [5, 6, 7, 8, 9, 10, 11],
    "holes": [0, 2, 3, 6, 8, 9, 11],
    "left_and_holes": [1, 2, 5, 6, 8, 9, 10],
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("normalization", ["none", "sqrt", "mean"])
@pytest.mark.parametrize("task", TASKS)
def test_padding_changes_nothing(task, normalization, implementation):
    """A sentence alone, and in one batch with longer ones: in front of padding, behind it, and with holes."""
    model = tiny_model(task, attn_implementation=implementation, length_normalization=normalization)
    sentence = tokens(7)
    rows = [arrange(sentence, slots, 12) for slots in SLOTS.values()] + [arrange(tokens(12, seed=3), list(range(12)), 12)]
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    alone = {"input_ids": sentence[None]}
    if task == "ForMultipleChoice":
        batch, alone = ({name: tensor[:, None] for name, tensor in inputs.items()} for inputs in (batch, alone))
    with torch.no_grad():
        expected, padded = first_output(model(**alone))[0], first_output(model(**batch))
    per_token = task not in ("ForSequenceClassification", "ForMultipleChoice")
    for (where, slots), row in zip(SLOTS.items(), padded, strict=False):
        assert difference(row[slots] if per_token else row, expected) < 1e-5, where


def test_a_wholly_masked_row_is_finite_and_disturbs_nobody():
    model = tiny_model(length_normalization="mean")
    input_ids = tokens(2, 6)
    together = model(input_ids, attention_mask=torch.tensor([[1] * 6, [0] * 6])).last_hidden_state
    assert together.isfinite().all()
    assert difference(together[:1], model(input_ids[:1]).last_hidden_state) < 1e-5


# Masks of four dimensions


def additive(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("form", ["bool", "additive"])
@pytest.mark.parametrize("normalization", ["none", "sqrt"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_padding_as_a_4d_mask_equals_the_2d_mask(implementation, normalization, form):
    model = tiny_model(attn_implementation=implementation, length_normalization=normalization)
    input_ids, padding = tokens(2, 6), torch.tensor([[1, 1, 0, 1, 0, 0], [0, 1, 1, 1, 1, 1]])
    mask = padding.bool()[:, None, None, :].expand(2, 1, 6, 6)
    expected = model(input_ids, attention_mask=padding).last_hidden_state
    given = model(input_ids, attention_mask=mask if form == "bool" else additive(mask)).last_hidden_state
    # The default implementation takes another backend for a mask of four dimensions, and leaves out padding for one of two.
    real = padding.bool()
    assert difference(given[real], expected[real]) < 1e-5
    assert difference(model(input_ids).last_hidden_state[real], expected[real]) > 0.1


@pytest.mark.parametrize("form", ["bool", "additive"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_causal_4d_mask_acts_as_the_operators_causal(implementation, form):
    model = tiny_model(attn_implementation=implementation, n_layers=1, length_normalization="mean")
    input_ids = tokens(2, 6)
    mask = torch.ones(6, 6).tril().bool().expand(2, 1, 6, 6)
    outputs = model(input_ids, attention_mask=mask if form == "bool" else additive(mask), output_hidden_states=True)

    layer = model.transformer.layer[0]
    hidden_states, attention = outputs.hidden_states[0], layer.attention
    output = operator_output(attention, hidden_states, causal=True) / torch.arange(1.0, 7.0)[:, None]
    attended = attention.out_lin(output.transpose(1, 2).flatten(2))
    hidden_states = layer.sa_layer_norm(attended + hidden_states)
    expected = layer.output_layer_norm(layer.ffn(hidden_states) + hidden_states)
    assert difference(outputs.last_hidden_state, expected) < 1e-5
    assert difference(model(input_ids).last_hidden_state, expected) > 0.1


def test_each_head_may_have_its_own_mask():
    model = tiny_model()
    input_ids = tokens(2, 6)
    per_head = torch.ones(2, 4, 6, 6, dtype=torch.bool)
    assert difference(model(input_ids, attention_mask=per_head)[0], model(input_ids)[0]) < 1e-5
    per_head[:, 2, :, 3:] = False
    assert difference(model(input_ids, attention_mask=per_head)[0], model(input_ids)[0]) > 0.1


# Outputs and attention implementations


def operator_output(attention, hidden_states: Tensor, **kwargs):
    """The operator on what an attention module projects from `hidden_states`."""
    query, key, value = (
        linear(hidden_states).unflatten(-1, (4, 8)).transpose(1, 2)
        for linear in (attention.q_lin, attention.k_lin, attention.v_lin)
    )
    scalars = {name: getattr(attention, name) for name in SCALARS}
    return inhibitor_attention(query, key, value, **scalars, backend="naive", **kwargs)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("normalization", "exponent"), [("none", 0.0), ("sqrt", 0.5), ("mean", 1.0)])
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("centered", [True, False], ids=["centered", "uncentered"])
def test_the_attention_module_is_the_operator_as_configured(centered, signed, normalization, exponent, implementation):
    """The sum over visible keys, divided by 1, the root of their number or their number, and then projected."""
    model = tiny_model(
        attn_implementation=implementation,
        centered=centered,
        signed=signed,
        length_normalization=normalization,
        alpha_init=0.5 if centered else -4.0,
        scalars_per_head=True,
    )
    attention, hidden_states = model.transformer.layer[0].attention, torch.randn(2, 6, 32)
    padding = torch.tensor([[1, 0, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    mask = padding if implementation == "inhibitor" else additive(padding[:, None, None, :].expand(2, 1, 6, 6))
    output = operator_output(attention, hidden_states, key_padding_mask=padding, centered=centered, signed=signed)
    output = output / torch.tensor([3.0, 6.0]).pow(exponent)[:, None, None, None]
    expected = attention.out_lin(output.transpose(1, 2).flatten(2))
    assert expected.abs().mean() > 0.1
    assert difference(attention(hidden_states, mask)[0], expected) < 1e-5


GATE = {"inhibition": "gate", "center": "least", "radii": 2, "length_normalization": "passed", "scalars_per_head": True}
GATE |= {"alpha_init": [-0.5, 0.1], "beta_init": [1.0, 0.6], "gamma_init": 0.7, "delta_init": 0.8}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "fields",
    [
        GATE,
        {"center": "least", "alpha_init": 0.0, "length_normalization": "mean"},
        {"radii": 2, "alpha_init": [0.5, 1.1], "signed": False, "length_normalization": "sqrt"},
        {"length_normalization": "passed", "centered": False, "alpha_init": -4.0, "delta_init": 0.3},
    ],
    ids=["gate", "least", "radii", "passed"],
)
def test_the_attention_module_is_the_operator_in_forms_beyond_the_paper(fields, implementation):
    model = tiny_model(attn_implementation=implementation, **fields)
    attention, hidden_states = model.transformer.layer[0].attention, torch.randn(2, 6, 32)
    padding = torch.tensor([[1, 0, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    mask = padding if implementation == "inhibitor" else additive(padding[:, None, None, :].expand(2, 1, 6, 6))
    form = {name: fields[name] for name in ("inhibition", "center", "centered", "signed") if name in fields}
    output = operator_output(attention, hidden_states, key_padding_mask=padding, delta=attention.delta, **form)
    exponent = {"sqrt": 0.5, "mean": 1.0}.get(fields["length_normalization"], 0.0)
    output = output / torch.tensor([3.0, 6.0]).pow(exponent)[:, None, None, None]
    expected = attention.out_lin(output.transpose(1, 2).flatten(2))
    assert expected.abs().mean() > 0.05
    assert difference(attention(hidden_states, mask)[0], expected) < 1e-5
    assert (attention.delta is None) == (fields["length_normalization"] != "passed")
    assert attention.alpha.shape[0] == fields.get("radii", attention.alpha.shape[0])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_attentions_of_a_gate_are_the_scores_of_its_first_radius(implementation):
    model = tiny_model(attn_implementation=implementation, **GATE)
    input_ids, padding = tokens(2, 6), torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    outputs = model(input_ids, attention_mask=padding, output_attentions=True, output_hidden_states=True)
    attention, states = model.transformer.layer[0].attention, outputs.hidden_states[0]
    form = {"inhibition": "gate", "center": "least", "key_padding_mask": padding.bool(), "return_scores": True}
    _, expected = operator_output(attention, states, delta=attention.delta, **form)
    assert difference(outputs.attentions[0], expected) < 1e-5
    # The nearest key of each query stands at alpha of the first radius.
    nearest = expected.masked_fill(~padding.bool()[:, None, None], 9).amin(-1)
    assert torch.equal(nearest, torch.full_like(nearest, -0.5))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_padding_changes_nothing_for_a_gate(implementation):
    model = tiny_model(attn_implementation=implementation, **GATE)
    sentence, rows = tokens(7), [arrange(tokens(12, seed=3), list(range(12)), 12)]
    rows += [arrange(sentence, slots, 12) for slots in SLOTS.values()]
    expected = model(sentence[None]).last_hidden_state[0]
    padded = model(**{name: torch.stack([row[name] for row in rows]) for name in rows[0]}).last_hidden_state[1:]
    for (where, slots), row in zip(SLOTS.items(), padded, strict=True):
        assert difference(row[slots], expected) < 1e-5, where


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_attentions_are_the_scores_of_the_operator(implementation):
    model = tiny_model(attn_implementation=implementation, scalars_per_head=True)
    input_ids, padding = tokens(2, 6), torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    outputs = model(input_ids, attention_mask=padding, output_attentions=True, output_hidden_states=True)
    assert len(outputs.attentions) == 2
    for layer, z, hidden_states in zip(model.transformer.layer, outputs.attentions, outputs.hidden_states, strict=False):
        _, expected = operator_output(layer.attention, hidden_states, key_padding_mask=padding.bool(), return_scores=True)
        assert z.shape == (2, 4, 6, 6)
        assert difference(z, expected) < 1e-5
        assert 0.2 < (expected > 0).float().mean() < 0.8
    without = model(input_ids, attention_mask=padding)
    assert without.attentions is None
    assert without.hidden_states is None
    assert difference(outputs.last_hidden_state, without.last_hidden_state) < 1e-5


def test_scores_asked_of_the_default_fall_back_and_say_so_once(caplog):
    logging.Logger.warning_once.cache_clear()
    model = tiny_model()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            model(tokens(1, 4), output_attentions=True)
    assert [record.message for record in caplog.records if "output_attentions" in record.message] == [
        'output_attentions=True needs the scores in memory: attn_implementation="eager" is used for such calls.'
    ]
    assert model.config._attn_implementation == "inhibitor"


def test_output_attentions_in_the_configuration():
    model = model_class("ForSequenceClassification")(tiny_config(output_attentions=True)).eval()
    assert [z.shape for z in model(tokens(1, 5)).attentions] == [(1, 4, 5, 5)] * 2


@pytest.mark.parametrize("task", TASKS)
def test_tuples_hold_what_the_dictionary_holds(task):
    model = tiny_model(task)
    batch = {"input_ids": tokens(2, 3, 5) if task == "ForMultipleChoice" else tokens(2, 5)}
    batch |= {"output_attentions": True, "output_hidden_states": True}
    if task != "Model":
        batch |= labels_for(task, batch["input_ids"])
    named, unnamed = model(**batch), model(**batch, return_dict=False)
    assert isinstance(unnamed, tuple)
    assert len(named.hidden_states) == 3
    for a, b in zip(named.to_tuple(), unnamed, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else all(map(torch.equal, a, b))


class TestAttentionImplementation:
    def test_the_default_is_the_inhibitor(self, tmp_path):
        model = InhibiDistilBertModel(tiny_config())
        assert model.config._attn_implementation == "inhibitor"
        model.save_pretrained(tmp_path)
        assert InhibiDistilBertModel.from_pretrained(tmp_path).config._attn_implementation == "inhibitor"

    @pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
    def test_chosen_at_construction_and_at_loading(self, tmp_path, implementation):
        model = AutoModelForSequenceClassification.from_config(tiny_config(), attn_implementation=implementation)
        assert model.config._attn_implementation == implementation
        model.save_pretrained(tmp_path)
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation=implementation)
        assert loaded.config._attn_implementation == implementation

    def test_set_later_on_a_head_it_reaches_the_encoder(self, monkeypatch):
        model = tiny_model("ForSequenceClassification")
        input_ids = tokens(2, 6)
        expected = model(input_ids).logits
        called = []
        eager = modeling_inhibidistilbert.ALL_ATTENTION_FUNCTIONS["eager"]
        monkeypatch.setitem(
            modeling_inhibidistilbert.ALL_ATTENTION_FUNCTIONS,
            "eager",
            lambda *args, **kwargs: called.append("eager") or eager(*args, **kwargs),
        )
        model.set_attn_implementation("eager")
        assert difference(model(input_ids).logits, expected) < 1e-5
        assert called == ["eager"] * 2

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("sdpa", "attn_implementation='sdpa' computes softmax attention"),
            ("flash_attention_2", "attn_implementation='flash_attention_2' computes softmax attention"),
            ("flex_attention", "attn_implementation='flex_attention' computes softmax attention"),
            ("inhibitor_typo", "inhibitor_typo"),
        ],
    )
    def test_other_names_are_refused(self, tmp_path, name, message):
        model = InhibiDistilBertModel(tiny_config())
        model.save_pretrained(tmp_path)
        for choose in (
            model.set_attn_implementation,
            lambda name: AutoModel.from_config(tiny_config(), attn_implementation=name),
            lambda name: AutoModel.from_pretrained(tmp_path, attn_implementation=name),
        ):
            with pytest.raises(ValueError, match=message) as refusal:
                choose(name)
            assert "'inhibitor'" in str(refusal.value)
        assert model.config._attn_implementation == "inhibitor"


# Half precision


@pytest.mark.parametrize(
    "cast", [lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.to(torch.bfloat16)], ids=["half", "bfloat16", "to_bf16"]
)
def test_casting_leaves_the_scalars_alone(cast):
    model = tiny_model("ForSequenceClassification", alpha_init=0.1, beta_init=0.3, gamma_init=1.7, scalars_per_head=True)
    before = copy.deepcopy(scalars_of(model))
    cast(model)
    assert model.classifier.weight.dtype != torch.float32
    for name, scalar in scalars_of(model).items():
        assert scalar.dtype == torch.float32
        assert torch.equal(scalar, before[name]), name
        assert isinstance(scalar, torch.nn.Parameter)
        assert scalar.requires_grad
    logits = model(tokens(2, 5)).logits
    assert logits.dtype == model.classifier.weight.dtype
    assert logits.isfinite().all()


@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_loaded_in_half_precision_the_scalars_stay_exact(tmp_path, dtype):
    tiny_model("ForSequenceClassification", alpha_init=0.1, beta_init=0.3, gamma_init=1.7).save_pretrained(tmp_path / "a")
    model = model_class("ForSequenceClassification").from_pretrained(tmp_path / "a", dtype=dtype)
    model.save_pretrained(tmp_path / "b")
    again = model_class("ForSequenceClassification").from_pretrained(tmp_path / "b", dtype=dtype)
    for loaded in (model, again):
        assert loaded.classifier.weight.dtype == dtype
        for name, scalar in scalars_of(loaded).items():
            expected = {"alpha": 0.1, "beta": 0.3, "gamma": 1.7}[name.rpartition(".")[2]]
            assert torch.equal(scalar, torch.tensor([expected])), name
    assert model(tokens(2, 5)).logits.isfinite().all()


@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_scalars_of_several_radii_stay_exact_in_half_precision(tmp_path, dtype):
    """Cast, saved and loaded, and read from a DistilBERT, which has none."""
    tiny_model("ForSequenceClassification", **GATE).to(dtype).save_pretrained(tmp_path / "a")
    tiny_distilbert().save_pretrained(tmp_path / "b")
    loaded = model_class("ForSequenceClassification").from_pretrained(tmp_path / "a", dtype=dtype)
    dirty_the_allocator()
    for model in (loaded, InhibiDistilBertModel.from_pretrained(tmp_path / "b", dtype=dtype, **GATE)):
        attention = model.base_model.transformer.layer[1].attention
        assert attention.q_lin.weight.dtype == dtype
        for name in (*SCALARS, "delta"):
            expected = torch.tensor(GATE[f"{name}_init"])[..., None].expand((4,) if name == "delta" else (2, 4))
            assert torch.equal(getattr(attention, name), expected), name
    assert loaded(tokens(2, 5)).logits.isfinite().all()


def test_a_gate_learns_all_its_scalars():
    model = tiny_model("ForSequenceClassification", **GATE).train()
    model(tokens(2, 6), labels=torch.tensor([0, 1])).loss.backward()
    for layer in model.distilbert.transformer.layer:
        assert layer.attention.scalars().keys() == {*SCALARS, "delta"}
        assert all(scalar.grad.any() for scalar in layer.attention.scalars().values())


def test_a_checkpoint_without_its_delta_is_refused(tmp_path):
    tiny_model(**GATE).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["transformer.layer.1.attention.delta"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks transformer\.layer\.1\.attention\.delta"):
        InhibiDistilBertModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_built_in_half_precision_the_scalars_are_float32(dtype):
    model = AutoModel.from_config(tiny_config(alpha_init=0.1), dtype=dtype)
    attention = model.transformer.layer[0].attention
    assert attention.q_lin.weight.dtype == dtype
    assert torch.equal(attention.alpha, torch.tensor([0.1]))


def test_a_half_precision_model_trains_its_scalars():
    model = tiny_model("ForSequenceClassification").bfloat16()
    model(tokens(2, 6), labels=torch.tensor([0, 1])).loss.backward()
    for name, scalar in scalars_of(model).items():
        assert scalar.grad.dtype == torch.float32
        assert scalar.grad.isfinite().all(), name


def test_autocast_runs_and_is_near_float32():
    model = tiny_model("ForSequenceClassification")
    input_ids, labels = tokens(4, 8), torch.tensor([0, 1, 0, 1])
    expected = model(input_ids).logits
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(input_ids, labels=labels)
    outputs.loss.backward()
    assert (outputs.logits - expected).norm() < 0.1 * expected.norm()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    assert scalars_of(model).keys() == {name for name, p in scalars_of(model).items() if p.grad is not None}


# Training


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("task", HEADS)
def test_every_parameter_learns(task, implementation):
    model = tiny_model(task, attn_implementation=implementation, scalars_per_head=True).train()
    input_ids = tokens(4, 2, 8) if task == "ForMultipleChoice" else tokens(4, 8)
    model(input_ids, **labels_for(task, input_ids)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradient_checkpointing_changes_nothing(implementation):
    """With every dropout active: the recomputation draws the same keys."""
    model = tiny_model("ForSequenceClassification", attn_implementation=implementation, attention_dropout=0.3).train()
    input_ids, labels = tokens(4, 8), torch.tensor([0, 1, 1, 0])
    calls = []
    model.distilbert.transformer.layer[0].attention.register_forward_hook(lambda *_: calls.append(1))

    def loss_and_gradients():
        calls.clear()
        model.zero_grad()
        torch.manual_seed(5)
        loss = model(input_ids, labels=labels).loss
        loss.backward()
        return loss.detach(), [parameter.grad for parameter in model.parameters()]

    loss, gradients = loss_and_gradients()
    assert len(calls) == 1
    model.gradient_checkpointing_enable()
    checkpointed_loss, checkpointed_gradients = loss_and_gradients()
    assert len(calls) == 2
    assert torch.equal(loss, checkpointed_loss)
    for gradient, checkpointed in zip(gradients, checkpointed_gradients, strict=True):
        torch.testing.assert_close(checkpointed, gradient, rtol=0, atol=0)


def kept_keys_probe(dropout: float, implementation: str):
    """An attention module whose output tells which keys were kept, for every query and head.

    With gamma = alpha = 0 nothing is inhibited. Key j carries 1 in channel j of each of the 2 heads, so channel j of the
    output is 1 where key j counted and 0 where it was dropped: `(B, M, 2, 8)`.
    """
    model = tiny_model(
        dim=16, n_heads=2, attn_implementation=implementation, alpha_init=0, gamma_init=0, attention_dropout=dropout
    )
    attention = model.transformer.layer[0].attention
    with torch.no_grad():
        for linear in (attention.v_lin, attention.out_lin):
            linear.weight.copy_(torch.eye(16))
            linear.bias.zero_()
    keys = torch.eye(8).repeat(1, 2).expand(64, 8, 16)
    return attention, lambda: attention(keys)[0].view(64, 8, 2, 8)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_attention_dropout_drops_whole_keys_in_training_only(implementation):
    attention, output = kept_keys_probe(0.25, implementation)
    assert torch.equal(output(), torch.ones(64, 8, 2, 8))
    attention.train()
    torch.manual_seed(0)
    kept = output().detach()
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(kept, kept[:, :1, :1].expand_as(kept))
    assert 0.7 < kept[:, 0, 0].mean() < 0.8
    assert not torch.equal(kept, output())


# Resizing, chunking, tying


def test_resized_token_embeddings_keep_the_head_tied(tmp_path):
    model = tiny_model("ForMaskedLM")
    old = model.get_input_embeddings().weight.detach().clone()
    model.resize_token_embeddings(120)
    assert model.config.vocab_size == 120
    assert model.vocab_projector.weight is model.get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight[:99], old)
    assert model.vocab_projector.bias.shape == (120,)
    outputs = model(torch.full((1, 4), 119), labels=torch.full((1, 4), 110))
    assert outputs.logits.shape == (1, 4, 120)
    assert outputs.loss.isfinite()
    model.save_pretrained(tmp_path)
    loaded = InhibiDistilBertForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(torch.full((1, 4), 119)).logits, outputs.logits)


def test_tied_weights_are_stored_once_and_come_back_tied(tmp_path):
    model = tiny_model("ForMaskedLM")
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert ("vocab_projector.weight" in stored) != ("distilbert.embeddings.word_embeddings.weight" in stored)
    loaded = InhibiDistilBertForMaskedLM.from_pretrained(tmp_path)
    assert loaded.vocab_projector.weight is loaded.distilbert.embeddings.word_embeddings.weight
    assert torch.equal(loaded(tokens(1, 5)).logits, model(tokens(1, 5)).logits)


def test_untied_weights_stay_apart(tmp_path):
    model = tiny_model("ForMaskedLM", tie_word_embeddings=False)
    assert model.vocab_projector.weight is not model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    loaded = InhibiDistilBertForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.vocab_projector.weight, model.vocab_projector.weight)
    assert not torch.equal(loaded.vocab_projector.weight, loaded.get_input_embeddings().weight)


@pytest.mark.parametrize("sinusoidal", [False, True], ids=["learned", "sinusoidal"])
@pytest.mark.parametrize("positions", [10, 24, 40])
@pytest.mark.parametrize("task", ["Model", "ForTokenClassification"])
def test_resized_position_embeddings(tmp_path, task, positions, sinusoidal):
    model = tiny_model(task, sinusoidal_pos_embds=sinusoidal)
    old = model.get_position_embeddings().weight.detach().clone()
    input_ids = tokens(2, 10)
    expected = first_output(model(input_ids))
    model.resize_position_embeddings(positions)

    assert model.config.max_position_embeddings == positions
    table = model.get_position_embeddings().weight
    assert table.shape == (positions, 32)
    assert torch.equal(table[:24], old[:positions])
    if sinusoidal:
        formula = torch.empty(positions, 32)
        modeling_distilbert.create_sinusoidal_embeddings(positions, 32, formula)
        assert difference(table, formula) < 1e-6
    else:
        assert (table[24:].std() if positions > 24 else table.std()) > 0.1
    assert torch.equal(first_output(model(input_ids)), expected)

    full = tokens(1, positions)
    whole = first_output(model(full))
    model.save_pretrained(tmp_path)
    loaded = model_class(task).from_pretrained(tmp_path)
    assert torch.equal(first_output(loaded(full)), whole)
    with pytest.raises(ValueError, match=f"{positions + 1} tokens but the position table holds {positions}"):
        loaded(tokens(1, positions + 1))


def test_a_position_table_needs_a_row():
    with pytest.raises(ValueError, match="new_num_position_embeddings must be at least 1, got 0"):
        tiny_model().resize_position_embeddings(0)


def test_feed_forward_chunks_change_nothing():
    # In float32 products of other shapes are rounded in another order on some processors.
    whole, chunked = tiny_model().double(), tiny_model(chunk_size_feed_forward=3).double()
    lengths = []
    chunked.transformer.layer[0].ffn.lin1.register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    input_ids = tokens(2, 9)
    assert difference(chunked(input_ids).last_hidden_state, whole(input_ids).last_hidden_state) < 1e-12
    assert lengths == [3, 3, 3]


def test_inputs_embeds_stand_for_input_ids():
    model = tiny_model("ForSequenceClassification")
    input_ids = tokens(2, 6)
    embedded = model.get_input_embeddings()(input_ids)
    assert torch.equal(model(inputs_embeds=embedded).logits, model(input_ids).logits)


# Refusals


@pytest.mark.parametrize("task", TASKS)
def test_exactly_one_kind_of_input(task):
    model = tiny_model(task)
    shape = (1, 2, 4) if task == "ForMultipleChoice" else (1, 4)
    for inputs in ({}, {"input_ids": tokens(*shape), "inputs_embeds": torch.zeros(*shape, 32)}):
        with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
            model(**inputs)


@pytest.mark.parametrize("task", TASKS)
def test_too_long_inputs_name_both_lengths(task):
    input_ids = tokens(1, 2, 25) if task == "ForMultipleChoice" else tokens(1, 25)
    with pytest.raises(ValueError, match="25 tokens but the position table holds 24"):
        tiny_model(task)(input_ids)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(2, 5), (1, 6), (6,), (2, 6, 6), (1, 1, 6, 6), (2, 3, 6, 6), (2, 1, 5, 6)], ids=str)
def test_attention_masks_of_another_shape_are_refused(shape, implementation):
    with pytest.raises(ValueError, match=r"\(2, 6\)|\(2, 4, 6, 6\)") as refusal:
        tiny_model(attn_implementation=implementation)(tokens(2, 6), attention_mask=torch.ones(shape))
    assert str(shape) in str(refusal.value)


def test_integer_4d_masks_are_refused_since_0_and_1_could_mean_either():
    with pytest.raises(ValueError, match=r"attention_mask .*int64"):
        tiny_model()(tokens(2, 6), attention_mask=torch.ones(2, 1, 6, 6, dtype=torch.int64).tril())


def test_a_head_split_changed_after_the_check_is_refused(tmp_path):
    """A field set later, or on loading, does not pass the configuration's own check."""
    InhibiDistilBertModel(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="n_heads must divide dim evenly, got n_heads=5 and dim=32"):
        InhibiDistilBertModel.from_pretrained(tmp_path, n_heads=5)


def test_question_answering_needs_two_labels():
    with pytest.raises(ValueError, match=r"num_labels must be 2 .* got 3"):
        model_class("ForQuestionAnswering")(tiny_config(num_labels=3))


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("name", SCALARS)
def test_a_checkpoint_with_a_non_finite_scalar_is_refused_by_name(tmp_path, name, value):
    tiny_model(scalars_per_head=True).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    parameter = f"transformer.layer.1.attention.{name}"
    weights[parameter][2] = value
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"^{parameter} .* must be finite"):
        InhibiDistilBertModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{parameter} .* must be finite"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
def test_a_folder_with_a_missing_file_is_refused_by_name(tmp_path, missing):
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(OSError, match=missing):
        InhibiDistilBertModel.from_pretrained(tmp_path)


def test_distilbert_and_ours_are_told_apart_once_saved(tmp_path):
    """A student started from a DistilBERT folder saves as what it is."""
    tiny_distilbert().save_pretrained(tmp_path / "teacher")
    InhibiDistilBertModel.from_pretrained(tmp_path / "teacher").save_pretrained(tmp_path / "student")
    assert type(AutoModel.from_pretrained(tmp_path / "student")) is InhibiDistilBertModel
    assert type(AutoModel.from_pretrained(tmp_path / "teacher")) is distilbert_class("Model")


# Saving and loading


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("task", ["Model", "ForMaskedLM"])
def test_saving_changes_nothing(tmp_path, task, dtype):
    assert_saving_changes_nothing(tiny_model(task).to(dtype), tmp_path)
