"""The table of backends is all that chooses: a line in it is enough for a new one."""

import importlib
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from inhibidistilbert import inhibitor_attention
from inhibidistilbert.kernels import attention as public
from inhibidistilbert.kernels.attention import BACKENDS, Backend

# A compiled backend as `kernels/README.md` has it: here the launchers call plain torch, and say that they ran.
NEW_FILE = """
from .custom_op import op_namespace, register_backend
from .blocked import torch_backward, torch_forward

calls = []


def _forward(query, key, value, padding, dropout, alpha, beta, gamma, delta, centered, signed, causal, output, statistics):
    calls.append("forward")
    output.copy_(torch_forward(query, key, value, padding, dropout, alpha, beta, gamma, delta, centered, signed, causal))


def _backward(
    grad_output, query, key, value, padding, dropout, alpha, beta, gamma, delta, output, statistics, centered, signed,
    causal, *outputs
):
    calls.append("backward")
    gradients = torch_backward(
        grad_output, query, key, value, padding, dropout, alpha, beta, gamma, delta, centered, signed, causal
    )
    for destination, gradient in zip(outputs, gradients):
        destination.copy_(gradient)
    return gradients[3:]


mine_attention = register_backend(op_namespace(__name__, __file__), _forward, _backward)


def mine_refusal(query):
    return "it takes heads of at most 8 channels" if query.shape[-1] > 8 else None
"""
NEW_FUNCTIONS = """def _mine():
    from .mine import mine_attention

    return mine_attention


def _mine_refusal(query):
    from .mine import mine_refusal

    return mine_refusal(query)


BACKENDS = {
    "mine": Backend(("cpu",), _mine, _mine_refusal),
"""


@pytest.fixture
def extended(tmp_path: Path) -> Iterator[types.ModuleType]:
    """The operator's files with one more backend: a file, and its line in the table."""
    folder = shutil.copytree(
        Path(public.__file__).parent, tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__")
    )
    (folder / "mine.py").write_text(NEW_FILE)
    table = folder / "attention.py"
    before = table.read_text()
    assert before.count("BACKENDS = {\n") == 1
    table.write_text(before.replace("BACKENDS = {\n", NEW_FUNCTIONS))
    package = types.ModuleType("extended_kernels")
    package.__path__ = [str(folder)]
    sys.modules["extended_kernels"] = package
    yield importlib.import_module("extended_kernels.attention")
    for name in [name for name in sys.modules if name.startswith("extended_kernels")]:
        del sys.modules[name]


def tensors(size: int = 4) -> list[Tensor]:
    return [x.requires_grad_() for x in torch.randn(3, 2, 2, 5, size, generator=torch.Generator().manual_seed(0)).unbind()]


@pytest.mark.parametrize("backend", ["auto", "mine"])
def test_a_backend_that_is_added_is_used(extended: types.ModuleType, backend: str) -> None:
    given, same = tensors(), tensors()
    output = extended.inhibitor_attention(*given, backend=backend)
    output.sum().backward()
    assert sys.modules["extended_kernels.mine"].calls == ["forward", "backward"]
    want = inhibitor_attention(*same, backend="torch")
    want.sum().backward()
    assert torch.equal(output, want)
    assert all(torch.equal(x.grad, y.grad) for x, y in zip(given, same, strict=True))


def test_what_it_refuses_is_said_or_taken_by_plain_torch(
    extended: types.ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    given = tensors(size=9)
    with pytest.raises(ValueError, match=r"backend='mine' cannot be used here: it takes heads of at most 8 channels"):
        extended.inhibitor_attention(*given, backend="mine")
    with pytest.raises(ValueError, match="backend='mine' cannot be used here: it has no int8 form"), torch.no_grad():
        extended.inhibitor_attention(*given, backend="mine", quantized=True)
    assert torch.equal(extended.inhibitor_attention(*given), inhibitor_attention(*given, backend="torch"))
    with pytest.raises(ValueError, match=r"backend must be one of 'auto', 'mine', 'naive', .*, got 'other'"):
        extended.inhibitor_attention(*given, backend="other")


def test_a_plain_backend_gets_every_kind_of_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def plain(*arguments):
        calls.append(arguments)
        return BACKENDS["torch"].load()(*arguments)

    monkeypatch.setitem(BACKENDS, "plain", Backend(("meta",), lambda: plain))
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    output, scores = inhibitor_attention(*tensors(), attn_mask=mask, return_scores=True, backend="plain")
    assert len(calls) == 1
    want, want_scores = inhibitor_attention(*tensors(), attn_mask=mask, return_scores=True, backend="torch")
    assert torch.equal(output, want)
    assert torch.equal(scores, want_scores)
    inhibitor_attention(*(x.to("meta") for x in tensors()))
    assert len(calls) == 2, "auto gives it the tensors of its device"
