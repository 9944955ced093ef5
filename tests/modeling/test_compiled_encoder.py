"""All layers in one compiled call: the values of the modules called one by one, and only where nobody looks at those."""

import copy
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from inhibidistilbert import quantize
from inhibidistilbert.kernels.cpu import encoder, int8_attention
from inhibidistilbert.modeling import compiled_encoder
from inhibidistilbert.modeling import modeling_inhibidistilbert as modeling
from tests.helpers.cpu_machines import PROCESSORS, processor
from tests.helpers.tiny import tiny_model, tokens

PROBLEM = encoder._problem(True)
pytestmark = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))

SIZES = {"dim": 64, "hidden_dim": 128, "n_heads": 4, "initializer_range": 0.1, "max_position_embeddings": 160}
FORMS = {
    "sum": {"centered": False, "signed": False},
    "mean": {"length_normalization": "mean", "scalars_per_head": True},
    "sqrt": {"length_normalization": "sqrt"},
    "gate": {"inhibition": "gate", "center": "least", "length_normalization": "passed"},
}
RADII = {"radii": 2, "alpha_init": [0.1, 0.6]}
# Full rows; padding at the end, in the beginning and between; a text of padding; single tokens.
MASKS = {
    "full": torch.ones(2, 16),
    "one token": torch.ones(1, 1),
    "odd": torch.ones(3, 37),
    "padded": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 1, 0], [0] * 6]),
    "padding": torch.zeros(2, 5),
    "long": torch.ones(2, 150),
}


def make(int8: bool, task: str = "Model", **fields) -> nn.Module:
    model = tiny_model(task, **SIZES | fields)
    return quantize(model) if int8 else model


@torch.no_grad()
def run(model: nn.Module, mask: Tensor, compiled: bool | None = True, **options) -> Tensor:
    """The last states. compiled: whether all layers are one call; None for whatever the model chooses."""
    with pytest.MonkeyPatch.context() as patch:
        calls, ask = [], modeling.run_compiled
        patch.setattr(modeling, "run_compiled", lambda *a: calls.append(None if compiled is False else ask(*a)) or calls[-1])
        patch.setattr(compiled_encoder, "_MOST_FLOAT32_TOKENS", 1000)
        torch.manual_seed(0)
        states = model(tokens(*mask.shape), attention_mask=mask.long(), **options).last_hidden_state
    if compiled:
        assert len(calls) == 1
        assert calls[0] is not None
    return states


def assert_same(model: nn.Module, mask: Tensor, int8: bool) -> None:
    got, want = run(model, mask), run(model, mask, compiled=False)
    if int8:
        # A number at the middle of two steps may be rounded to the other one.
        assert got.shape == want.shape
        assert (got - want).norm() <= 4e-3 * want.norm()
    else:
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("int8", [True, False], ids=["int8", "float32"])
def test_values_are_those_of_the_modules(int8, mask):
    assert_same(make(int8, **FORMS["sqrt"]), MASKS[mask], int8)


def test_no_texts():
    assert run(make(True), torch.ones(0, 7)).shape == (0, 7, 64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("int8", [True, False], ids=["int8", "float32"])
def test_every_form(int8, form):
    assert_same(make(int8, **FORMS[form]), MASKS["padded"], int8)


def test_several_radii():
    assert_same(make(False, **RADII), MASKS["padded"], False)


@pytest.fixture
def on_threads(monkeypatch):
    """Runs a model on so many threads, however little there is to do."""
    before = torch.get_num_threads()
    monkeypatch.setattr(encoder, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr(int8_attention, "WORTH_A_THREAD", 1)

    def run_on(threads: int, model: nn.Module, mask: Tensor) -> Tensor:
        torch.set_num_threads(threads)
        return run(model, mask)

    yield run_on
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("int8", [True, False], ids=["int8", "float32"])
def test_every_processor(int8, name, monkeypatch, on_threads):
    machine = processor(name)
    monkeypatch.setattr(encoder, "machine", lambda: machine)
    model = make(int8, **FORMS["sqrt"])
    assert_same(model, MASKS["odd"], int8)
    assert torch.equal(on_threads(2, model, MASKS["padded"]), on_threads(1, model, MASKS["padded"]))


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("mask", ["one token", "padded", "long"])
@pytest.mark.parametrize("int8", [True, False], ids=["int8", "float32"])
def test_threads(int8, mask, threads, on_threads):
    """They share the outputs of a product of few tokens, and of many the tokens."""
    model = make(int8)
    assert torch.equal(on_threads(threads, model, MASKS[mask]), on_threads(1, model, MASKS[mask]))


def test_two_callers_at_once():
    model = make(True)
    masks = [torch.ones(rows, length) for rows, length in ((1, 9), (2, 16), (3, 5), (1, 32))]
    want = [run(model, mask) for mask in masks]
    compiled_encoder._prepared.clear()

    @torch.no_grad()
    def call(mask: Tensor) -> Tensor:
        return model(tokens(*mask.shape), attention_mask=mask.long()).last_hidden_state

    with ThreadPoolExecutor(2) as pool:
        got = list(pool.map(call, masks * 10))
    assert all(torch.equal(a, b) for a, b in zip(got, want * 10, strict=True))


def test_texts_that_share_a_row():
    model = make(True)
    with torch.no_grad():
        ids = tokens(1, 9)
        positions = torch.tensor([[0, 1, 2, 3, 0, 0, 1, 2, 3]])
        got = model(ids, position_ids=positions).last_hidden_state
        want = [model(part).last_hidden_state for part in ids.split([4, 1, 4], 1)]
    torch.testing.assert_close(got, torch.cat(want, 1), rtol=0, atol=1e-5)


def test_numbers_that_are_not_finite():
    for int8 in (True, False):
        model = make(int8)
        with torch.no_grad():
            model.embeddings.word_embeddings.weight[tokens(2, 16)[0, 3]] = torch.inf
        got, want = run(model, MASKS["full"], compiled=None), run(model, MASKS["full"], compiled=False)
        assert torch.equal(got.isfinite(), want.isfinite())


def changes_are_seen(model: nn.Module, change) -> None:
    before = run(model, MASKS["full"])
    change(model.transformer.layer[1])
    after = run(model, MASKS["full"])
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, run(model, MASKS["full"], compiled=False), rtol=0, atol=1e-5)


@torch.no_grad()
def test_weights_may_change_in_place_and_by_name():
    model = make(False)
    changes_are_seen(model, lambda block: block.ffn.lin1.weight.mul_(2))
    changes_are_seen(model, lambda block: setattr(block.ffn, "lin1", copy.deepcopy(model.transformer.layer[0].ffn.lin1)))
    changes_are_seen(model, lambda block: setattr(block.attention.alpha, "data", block.attention.alpha * 0.5))
    changes_are_seen(copy.deepcopy(model), lambda block: block.sa_layer_norm.bias.add_(1))
    changes_are_seen(pickle.loads(pickle.dumps(model)), lambda block: block.ffn.lin2.bias.add_(1))


class Adapter(nn.Linear):
    """As LoRA puts one in a layer's place."""


def put_adapter(model: nn.Module) -> None:
    model.transformer.layer[0].attention.q_lin = Adapter(64, 64)


def other_activation(model: nn.Module) -> None:
    model.transformer.layer[1].ffn.activation = nn.ReLU()


def other_epsilon(model: nn.Module) -> None:
    model.transformer.layer[1].sa_layer_norm.eps = 1e-3


def own_forward(model: nn.Module) -> None:
    model.transformer.layer[1].forward = lambda states, *_, **__: states


PLAIN = {
    "adapter": put_adapter,
    "activation": other_activation,
    "epsilon": other_epsilon,
    "forward": own_forward,
    "hook": lambda model: model.transformer.layer[0].ffn.register_forward_hook(lambda *_: None),
    "training": lambda model: model.transformer.layer[0].ffn.dropout.train(),
    "one int8": lambda model: setattr(model.config, "quantized", True),
    "eager": lambda model: model.set_attn_implementation("eager"),
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "radius": lambda model: setattr(model.transformer.layer[1].attention, "alpha", nn.Parameter(torch.ones(4))),
}


@pytest.mark.parametrize("reason", PLAIN)
def test_modules_are_called_where_it_matters(reason, caplog):
    model = make(False)
    compiled_encoder._say.cache_clear()
    run(model, MASKS["full"])
    PLAIN[reason](model)
    with caplog.at_level(logging.DEBUG, compiled_encoder.logger.name):
        got = run(model, MASKS["full"], compiled=None)
        run(model, MASKS["full"], compiled=None)
    assert len([each for each in caplog.records if each.name == compiled_encoder.logger.name]) == 1
    assert torch.equal(got, run(model, MASKS["full"], compiled=False))


def test_gradients_and_states_of_layers():
    model = make(False)
    assert model(tokens(2, 9)).last_hidden_state.requires_grad
    for name in ("hidden_states", "attentions"):
        with torch.no_grad():
            assert len(getattr(model(tokens(2, 9), **{f"output_{name}": True}), name)) >= 2
    run(model, MASKS["full"])  # although transformers leaves its hooks


def test_what_is_packed_is_not_kept():
    """No second copy of the weights: what is kept is small, whatever the size of the layers."""
    model = make(True, dim=256, hidden_dim=1024)
    run(model, MASKS["full"])
    prepared = compiled_encoder._prepared[model.transformer]
    own = {x.data_ptr() for x in model.state_dict().values()}
    kept = [x for program in prepared.encoder._programs.values() for x in vars(program).values() if isinstance(x, Tensor)]
    assert kept
    assert not any(x.data_ptr() in own for x in kept)
    assert sum(x.nbytes for x in kept) < 1 << 15


@pytest.mark.slow
def test_compile_and_export_take_the_modules():
    model = make(False)
    batch = {"input_ids": tokens(2, 9), "attention_mask": torch.ones(2, 9).long()}
    with torch.no_grad():
        want = model(**batch).last_hidden_state
        got = torch.compile(model, fullgraph=True)(**batch).last_hidden_state
        exported = torch.export.export(model, (), batch).module()(**batch).last_hidden_state
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    torch.testing.assert_close(exported, want, rtol=0, atol=1e-5)
