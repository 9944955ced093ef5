"""torch.compile of whole models: one graph without breaks, two compilations for every length, and eager's numbers."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from inhibidistilbert import inhibitor_attention
from inhibidistilbert.modeling import modeling_inhibidistilbert
from inhibidistilbert.testing.reference import FORWARD_TOLERANCE, relative_rms
from tests.helpers.tiny import SIZES, TASKS, tiny_model, tokens
from tests.helpers.tiny_batches import NO_DROPOUT, assert_same_gradients, assert_same_output, batch, gradients

TASK = "ForSequenceClassification"
LENGTHS = (9, 13, 7, 20, 24)
ONE_LAYER = {"n_layers": 1}

slow = pytest.mark.slow
# `make test` compiles training steps by the default compiler, and the eager form with the mask of four dimensions alone.


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Nothing compiled before counts in a test, nor stays in memory after it."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model: torch.nn.Module, compiler: str = "aot_eager", **options):
    """`(the compiled model, a counter whose frame_count is the number of compilations)`."""
    counter = CompileCounterWithBackend(compiler)
    return torch.compile(model, fullgraph=True, backend=counter, **options), counter


def assert_same_training_step(fast: torch.nn.Module, model: torch.nn.Module, inputs: dict) -> None:
    got, want = fast(**inputs), model(**inputs)
    assert_same_output(got, want)
    assert relative_rms(got.loss, want.loss) < FORWARD_TOLERANCE
    assert_same_gradients(gradients(model, got.loss), gradients(model, want.loss))


@slow
@pytest.mark.parametrize("implementation", ["inhibitor", "eager"])
@pytest.mark.parametrize("normalization", ["none", "sqrt"])
@pytest.mark.parametrize("masked", [False, True], ids=["nomask", "mask"])
def test_training_steps_of_every_length(implementation, normalization, masked):
    fields = ONE_LAYER | NO_DROPOUT | {"length_normalization": normalization}
    model = tiny_model(TASK, attn_implementation=implementation, **fields).train()
    fast, counter = compiled(model)
    for length in LENGTHS:
        assert_same_training_step(fast, model, batch(TASK, 3, length, masked=masked, labelled=True))
    assert counter.frame_count == 2


def test_a_gate():
    """The operator alone: with two radii a whole model takes long to compile."""
    form = {"inhibition": "gate", "center": "least", "key_padding_mask": torch.rand(2, 9) < 0.7, "backend": "torch"}
    scalars = {"alpha": torch.tensor([[-0.5], [0.1]]), "delta": torch.tensor([0.8, 1.2])}
    leaves = dict(zip(("query", "key", "value"), torch.randn(3, 2, 2, 9, 8).unbind(), strict=True)) | scalars
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    fast, counter = compiled(partial(inhibitor_attention, **form))
    got, want = fast(**leaves), inhibitor_attention(**leaves, **form)
    assert relative_rms(got, want) < FORWARD_TOLERANCE
    found = [torch.autograd.grad(output.square().sum(), list(leaves.values())) for output in (got, want)]
    for one, other in zip(*found, strict=True):
        assert relative_rms(one, other) < FORWARD_TOLERANCE
    assert counter.frame_count == 1


@torch.no_grad()
@pytest.mark.parametrize(
    "task", [task if task == "ForQuestionAnswering" else pytest.param(task, marks=slow) for task in TASKS]
)
def test_every_class_at_every_batch_and_length(task):
    model = tiny_model(task, **ONE_LAYER, length_normalization="sqrt")
    fast, counter = compiled(model)
    for rows, length in ((3, 9), (4, 13), (2, 7), (5, 24)):
        inputs = batch(task, rows, length)
        assert_same_output(fast(**inputs), model(**inputs))
    assert counter.frame_count == 2


def test_training_steps_through_the_default_compiler():
    """Needs a C++ compiler, as torch.compile does on a CPU.

    Twelve rows: its code for sums differs below 4096 terms, and a length from the other side would be compiled again.
    """
    model = tiny_model(TASK, **ONE_LAYER, **NO_DROPOUT, length_normalization="sqrt").train()
    fast, counter = compiled(model, "inductor")
    for length in (10, 13, 11, 24):
        assert_same_training_step(fast, model, batch(TASK, 12, length, labelled=True))
    assert counter.frame_count == 2


@slow
@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
def test_gradient_checkpointing(reentrant):
    model = tiny_model(TASK, **NO_DROPOUT).train()
    plain = tiny_model(TASK, **NO_DROPOUT).train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    fast, counter = compiled(model)
    for length in LENGTHS[:3]:
        inputs = batch(TASK, 3, length, labelled=True)
        assert_same_gradients(gradients(model, fast(**inputs).loss), gradients(plain, plain(**inputs).loss))
    assert counter.frame_count == 2


@pytest.mark.parametrize("checkpointed", [pytest.param(False, id=""), pytest.param(True, id="checkpointed", marks=slow)])
def test_dropout_draws_what_eager_draws(checkpointed, monkeypatch):
    """With padding, that is: without it there are fewer numbers to draw."""
    monkeypatch.setattr(modeling_inhibidistilbert, "without_padding", lambda *_: None)
    model = tiny_model(TASK, **ONE_LAYER, attention_dropout=0.4).train()
    if checkpointed:
        model.gradient_checkpointing_enable()
    fast, counter = compiled(model)
    for length in LENGTHS[:3]:
        inputs = batch(TASK, 3, length, labelled=True)
        found = []
        for form in (fast, model):
            torch.manual_seed(5)
            found.append(gradients(model, form(**inputs).loss))
        assert_same_gradients(*found)
    assert counter.frame_count == 2


@slow
def test_autocast():
    model = tiny_model(TASK, **ONE_LAYER, **NO_DROPOUT).train()
    fast, counter = compiled(model)
    for length in LENGTHS[:3]:
        with torch.autocast("cpu", torch.bfloat16):
            assert_same_training_step(fast, model, batch(TASK, 3, length, labelled=True))
    assert counter.frame_count == 2


@torch.no_grad()
@pytest.mark.parametrize("implementation", [pytest.param("inhibitor", marks=slow), "eager"])
def test_a_4d_mask(implementation):
    model = tiny_model(attn_implementation=implementation, **ONE_LAYER, length_normalization="sqrt")
    fast, counter = compiled(model)
    for length in LENGTHS[:3]:
        causal = torch.ones(3, 1, length, length, dtype=torch.bool).tril()
        assert_same_output(fast(tokens(3, length), causal), model(tokens(3, length), causal))
    assert counter.frame_count == 2


@slow
@torch.no_grad()
@pytest.mark.parametrize("implementation", ["inhibitor", "eager"])
@pytest.mark.parametrize("wanted", ["hidden_states", "attentions"])
def test_inner_outputs_after_one_eager_call(implementation, wanted):
    """The first call that asks for them installs transformers' hooks, under a lock that no model can compile."""
    model = tiny_model(attn_implementation=implementation, **ONE_LAYER)
    asked = {f"output_{wanted}": True}
    model(tokens(1, 4), **asked)
    fast, counter = compiled(model)
    for length in LENGTHS[:3]:
        inputs = batch("Model", 3, length) | asked
        got, want = fast(**inputs)[wanted], model(**inputs)[wanted]
        assert len(got) == len(want) == (2 if wanted == "hidden_states" else 1)
        for one, other in zip(got, want, strict=True):
            assert relative_rms(one, other) < FORWARD_TOLERANCE
    assert counter.frame_count == 2


@slow
@torch.no_grad()
def test_too_long_inputs_still_name_both_lengths():
    fast, _ = compiled(tiny_model(**ONE_LAYER), dynamic=True)
    limit = SIZES["max_position_embeddings"]
    fast(tokens(2, 9))
    with pytest.raises(Exception, match=f"{limit + 1} tokens but the position table holds {limit}"):
        fast(tokens(2, limit + 1))


def test_second_derivatives_are_refused():
    """In eager mode the operator refuses them itself; a compiled model is refused by torch.compile, whatever it holds."""
    fast, _ = compiled(tiny_model(**ONE_LAYER))
    states = fast(tokens(2, 9)).last_hidden_state
    weight = fast.get_parameter("transformer.layer.0.attention.q_lin.weight")
    (gradient,) = torch.autograd.grad(states.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        gradient.square().sum().backward()
