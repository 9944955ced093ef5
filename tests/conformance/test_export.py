"""Models as programs: torch.export, ONNX and torch.jit.trace at other sizes than the traced, and torch.func."""

from functools import cache
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch.export import Dim

from inhibidistilbert import inhibitor_attention
from inhibidistilbert.testing.reference import FORWARD_TOLERANCE, relative_rms
from tests.helpers.tiny import SIZES, TASKS, first_output, tiny_model
from tests.helpers.tiny_batches import NO_DROPOUT, assert_same_gradients, assert_same_output, batch, gradients

LIMIT = SIZES["max_position_embeddings"]
TRACED = (3, 9)
OTHERS = ((1, 1), (1, 2), (2, 7), (5, LIMIT))

# `make test` exports the body in the strict way, the head with two outputs in the other, and the body to ONNX.
slow = pytest.mark.slow
tasks = pytest.mark.parametrize("task", ["Model", *(pytest.param(task, marks=slow) for task in TASKS if task != "Model")])
QUICK = {("Model", True), ("ForQuestionAnswering", False)}
implementations = pytest.mark.parametrize("implementation", ["inhibitor", pytest.param("eager", marks=slow)])


def dynamic_sizes(inputs: dict, longest: int = LIMIT) -> dict:
    """Any number of rows, and any length up to `longest`, for every tensor in `inputs`."""
    rows, length = Dim("rows", min=1, max=64), Dim("length", min=1, max=longest)
    return {name: {0: rows, tensor.ndim - 1: length} for name, tensor in inputs.items()}


def exported(model: torch.nn.Module, inputs: dict, **options) -> torch.export.ExportedProgram:
    return torch.export.export(model, (), inputs, **{"dynamic_shapes": dynamic_sizes(inputs)} | options)


@cache
@torch.no_grad()
def model_and_program(task: str, implementation: str, strict: bool) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A model of one layer and what it is exported to, once for all tests: that takes seconds."""
    model = tiny_model(task, attn_implementation=implementation, n_layers=1, length_normalization="sqrt")
    return model, exported(model, batch(task, *TRACED), strict=strict).module()


@torch.no_grad()
@implementations
@pytest.mark.parametrize(
    ("task", "strict"),
    [
        pytest.param(task, strict, id=f"{task}-{name}", marks=() if (task, strict) in QUICK else slow)
        for task in TASKS
        for strict, name in ((True, "strict"), (False, "non-strict"))
    ],
)
def test_export_runs_at_every_size(task, implementation, strict):
    model, program = model_and_program(task, implementation, strict)
    for rows, length in OTHERS:
        inputs = batch(task, rows, length)
        assert_same_output(program(**inputs), model(**inputs))


@torch.no_grad()
def test_export_without_a_mask_outlives_its_process(tmp_path):
    model = tiny_model("ForMaskedLM", n_layers=1)
    torch.export.save(exported(model, batch("ForMaskedLM", *TRACED, masked=False)), tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    for rows, length in OTHERS:
        inputs = batch("ForMaskedLM", rows, length, masked=False)
        assert_same_output(program(**inputs), model(**inputs))


@torch.no_grad()
def test_export_of_the_scores():
    model = tiny_model(attn_implementation="eager")
    model.config.output_attentions = True
    program = exported(model, batch("Model", *TRACED)).module()
    inputs = batch("Model", 2, 13)
    got, want = program(**inputs).attentions, model(**inputs).attentions
    assert len(got) == SIZES["n_layers"]
    for one, other in zip(got, want, strict=True):
        assert relative_rms(one, other) < FORWARD_TOLERANCE


def test_lengths_beyond_the_position_table_are_refused():
    model = tiny_model(n_layers=1)
    inputs = batch("Model", *TRACED)
    with pytest.raises(Exception, match=rf"Dim\('length', max={LIMIT}\)"):
        exported(model, inputs, dynamic_shapes=dynamic_sizes(inputs, longest=LIMIT + 1))
    _, program = model_and_program("Model", "inhibitor", True)
    with pytest.raises(Exception, match=f"<= {LIMIT}"):
        program(**batch("Model", 3, LIMIT + 1))


def onnx_session(model: torch.nn.Module, inputs: dict, path: Path, sizes: dict) -> onnxruntime.InferenceSession:
    """`model` as an ONNX file at `path`, opened."""
    torch.onnx.export(model, (), path, kwargs=inputs, dynamic_shapes=sizes, dynamo=True, verbose=False)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run_onnx(session: onnxruntime.InferenceSession, inputs: dict) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in session.run(None, {name: t.numpy() for name, t in inputs.items()})]


@torch.no_grad()
@implementations
@tasks
def test_onnx_runs_at_every_size(tmp_path, task, implementation):
    model = tiny_model(task, attn_implementation=implementation, n_layers=1, length_normalization="sqrt")
    traced = batch(task, *TRACED)
    session = onnx_session(model, traced, tmp_path / "model.onnx", dynamic_sizes(traced))
    file = onnx.load(tmp_path / "model.onnx")
    assert sum(node.op_type == "Scan" for node in file.graph.node) == 2  # the distances, and what passes
    for rows, length in OTHERS:
        inputs = batch(task, rows, length)
        got, want = run_onnx(session, inputs), first_output(model(**inputs))
        got = torch.stack(got, dim=-1) if task == "ForQuestionAnswering" else got[0]
        assert relative_rms(got, want) < FORWARD_TOLERANCE


class Operator(torch.nn.Module):
    """The operator alone, with the options that the tiny models do not use."""

    def forward(self, query, key, value, padding, visible):
        return inhibitor_attention(
            query,
            key,
            value,
            key_padding_mask=padding,
            attn_mask=visible,
            alpha=torch.tensor([0.3, -0.2]),
            gamma=torch.tensor([0.8, -0.7]),
            centered=False,
            signed=False,
            causal=True,
            return_scores=True,
        )


class Gate(torch.nn.Module):
    """The operator in the form that is furthest from the paper's."""

    def forward(self, query, key, value, padding):
        form = {"inhibition": "gate", "center": "least", "alpha": torch.tensor([[-0.5], [0.1]]), "delta": 0.8}
        return inhibitor_attention(query, key, value, key_padding_mask=padding, **form)


def operator_inputs(rows: int, queries: int, keys: int) -> dict:
    return {
        "query": torch.randn(rows, 2, queries, 8),
        "key": torch.randn(rows, 2, keys, 8),
        "value": 3 * torch.randn(rows, 2, keys, 8),
        "padding": torch.rand(rows, keys) < 0.8,
        "visible": torch.rand(1, 1, queries, keys) < 0.8,
    }


@torch.no_grad()
def test_onnx_of_the_operators_other_options(tmp_path):
    rows, queries, keys = Dim("rows", min=1, max=64), Dim("queries", min=1, max=64), Dim("keys", min=1, max=64)
    sizes = {
        "query": {0: rows, 2: queries},
        "key": {0: rows, 2: keys},
        "value": {0: rows, 2: keys},
        "padding": {0: rows, 1: keys},
        "visible": {2: queries, 3: keys},
    }
    session = onnx_session(Operator(), operator_inputs(3, 5, 7), tmp_path / "operator.onnx", sizes)
    for shape in ((1, 4, 4), (2, 9, 3), (4, 3, 20)):
        inputs = operator_inputs(*shape)
        for got, want in zip(run_onnx(session, inputs), Operator()(**inputs), strict=True):
            assert relative_rms(got, want) < FORWARD_TOLERANCE


@torch.no_grad()
def test_onnx_of_a_gate(tmp_path):
    rows, length = Dim("rows", min=1, max=64), Dim("length", min=1, max=64)
    sizes = {name: {0: rows, 2: length} for name in ("query", "key", "value")} | {"padding": {0: rows, 1: length}}

    def inputs(rows: int, length: int) -> dict:
        return {name: x for name, x in operator_inputs(rows, length, length).items() if name != "visible"}

    session = onnx_session(Gate(), inputs(3, 7), tmp_path / "gate.onnx", sizes)
    for shape in ((1, 1), (2, 9), (4, 20)):
        given = inputs(*shape)
        assert relative_rms(run_onnx(session, given)[0], Gate()(**given)) < FORWARD_TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["inhibitor", "eager"])
def test_jit_trace_runs_at_every_size(implementation):
    model = tiny_model(attn_implementation=implementation, length_normalization="sqrt", return_dict=False)
    traced = torch.jit.trace(model, tuple(batch("Model", *TRACED).values()), strict=False)
    for rows, length in OTHERS:
        inputs = tuple(batch("Model", rows, length).values())
        assert relative_rms(traced(*inputs)[0], model(*inputs)[0]) < FORWARD_TOLERANCE


def test_gradients_of_each_row_by_torch_func():
    """`vmap` over `grad`: their mean is the gradient of the mean loss."""
    task = "ForSequenceClassification"
    model = tiny_model(task, **NO_DROPOUT, problem_type="single_label_classification")
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    inputs = batch(task, 4, 9, labelled=True)

    def loss(parameters, row):
        row = {name: tensor[None] for name, tensor in row.items()}
        return torch.func.functional_call(model, parameters, kwargs=row).loss

    rows = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, inputs)
    means = {name: gradient.mean(0) for name, gradient in rows.items()}
    assert_same_gradients(means, gradients(model, model(**inputs).loss))


def test_forward_derivatives_by_torch_func():
    query, key, value, direction = torch.randn(4, 1, 2, 5, 4, dtype=torch.float64).unbind(0)
    _, derivative = torch.func.jvp(lambda query: inhibitor_attention(query, key, value), (query,), (direction,))
    step = 1e-7
    moved = [inhibitor_attention(query + sign * step * direction, key, value) for sign in (1, -1)]
    assert relative_rms(derivative, (moved[0] - moved[1]) / (2 * step)) < 1e-6
