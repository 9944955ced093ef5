"""What is slow says so: once a process, where everybody sees it, and nothing else does."""

import importlib
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from inhibidistilbert import inhibitor_attention
from inhibidistilbert.kernels import attention as public
from inhibidistilbert.kernels import notice
from inhibidistilbert.kernels.cpu import attention as cpu
from inhibidistilbert.kernels.cpu import int8_linear
from inhibidistilbert.kernels.llvm.jit import CompilerUnavailable
from inhibidistilbert.kernels.triton import launch

REFUSAL = cpu.cpu_refusal(torch.empty(1, 1, 1, 4))
pytestmark = pytest.mark.skipif(REFUSAL is not None, reason=str(REFUSAL))


@pytest.fixture
def nothing_said() -> Iterator[None]:
    """As in a new process."""
    said = set(notice._said)
    notice._said.clear()
    yield
    notice._said.update(said)


@pytest.mark.parametrize(
    ("size", "options", "reason"),
    [
        ((1, 1, 2, 513), {}, "heads of at most 512 channels, and these have 513"),
        ((1, 1, 2, 257), {"quantized": True}, "heads of at most 256 channels, and these have 257"),
        ((1, 1, 2, 4), {"dtype": torch.float64}, "the tensors are torch.float64"),
        ((1, 1, 2, 4), {"attn_mask": torch.ones(1, 1, 2, 2, dtype=torch.bool)}, "it takes no attn_mask"),
        ((1, 1, 2, 4), {"attn_mask": torch.ones(1, 1, 2, 2, dtype=torch.bool), "backend": "cpu"}, "it takes no attn_mask"),
    ],
    ids=["head-size", "int8-head-size", "float64", "mask", "asked-for"],
)
def test_every_slow_road_of_a_cpu_says_why_once(
    size: tuple, options: dict, reason: str, nothing_said: None, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = torch.randn(3, *size, dtype=options.get("dtype", torch.float32)).unbind()
    options = {name: value for name, value in options.items() if name != "dtype"}
    for _ in range(2):
        inhibitor_attention(*tensors, **options)
    assert [reason in record.message for record in caplog.records] == [True]


def test_a_gpu_without_triton_and_another_accelerator_say_so_once(
    nothing_said: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "triton", None)
    for device in ("cuda", "cuda", "mps"):
        assert public._choose("auto", SimpleNamespace(device=torch.device(device)), None, False)[1] is False
    assert ["pip install triton" in record.message for record in caplog.records] == [True, False]
    assert "'mps', not in its compiled form: there is no compiled form" in caplog.records[1].message


def test_nothing_is_said_where_nothing_is_slow(nothing_said: None, caplog: pytest.LogCaptureFixture) -> None:
    tensors = torch.randn(3, 1, 1, 3, 4).unbind()
    inhibitor_attention(*tensors)
    inhibitor_attention(*tensors, return_scores=True)  # which only the plain form gives
    torch.compile(inhibitor_attention, backend="eager")(*(x.double() for x in tensors))
    inhibitor_attention(*(x.to("meta") for x in tensors))
    assert not [record for record in caplog.records if record.name == notice.__name__]


def test_int8_weights_say_so_where_nothing_is_compiled(
    nothing_said: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, scale = torch.randn(2, 8), torch.ones(4, 8, dtype=torch.int8), torch.ones(4)
    int8_linear.int8_linear(x, weight, scale, scale)
    assert not caplog.records
    monkeypatch.setattr(int8_linear, "_problem", lambda *_: "there is no compiler")
    int8_linear.int8_linear(x, weight, scale, scale)
    assert [record.message.partition(",")[0] for record in caplog.records] == [
        "The product with int8 weights runs in plain torch on the device 'cpu'"
    ]


def test_what_is_missing_is_said_on_loading(
    nothing_said: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise CompilerUnavailable("there is no compiler")

    notice.say_what_is_missing()
    assert not caplog.records
    monkeypatch.setattr(notice, "host_machine", missing)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    for _ in range(2):
        notice.say_what_is_missing()
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    notice.say_what_is_missing()
    assert [
        next(words for words in ("there is no compiler", "pip install triton") if words in record.message)
        for record in caplog.records
    ] == ["there is no compiler", "pip install triton"]
