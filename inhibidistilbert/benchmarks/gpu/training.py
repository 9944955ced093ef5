"""A training step of a model of DistilBERT-base's size beside softmax DistilBERT: time and peak memory by length."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import nn

from ...support.benchmark_results import Tokens
from ...support.memory import peak_memory
from ...support.results import Quantiles
from ..peers import DTYPES, INHIBITOR, Checkpoint
from ..timing import SEED, Budget, interleave, ratios, warm_up
from .findings import Deadline, Finding
from .models import PEER

LENGTHS = (128, 512, 2048)
# In a batch at every length.
TOKENS = 8192
# Parameters, gradients and the optimizer's state are float32; bfloat16 by autocast.
PRECISIONS = ("bfloat16", "float32")
_SECONDS = 8
_BUDGET = Budget(seconds=2, least=3, most=50)


def measure(
    deadline: Deadline,
    device: torch.device | None = None,
    checkpoint: Checkpoint | None = None,
    lengths: Sequence[int] = LENGTHS,
    tokens: int = TOKENS,
) -> Iterator[Finding]:
    """Time, ratio and memory of a step at every length, in both precisions."""
    device = torch.device("cuda", torch.cuda.current_device()) if device is None else device
    checkpoint = Checkpoint.load("base") if checkpoint is None else checkpoint
    for precision in PRECISIONS:
        for shape in (Tokens(max(1, tokens // length), length) for length in lengths):
            setting = f"{precision}, {shape} tokens"
            if not deadline.leaves(_SECONDS):
                yield Finding.skipped("training step", setting, deadline.reason)
                continue
            try:
                yield from _compare(checkpoint, precision, shape, device, setting)
            except Exception as error:
                yield Finding.failure("training step", setting, error)


def _compare(checkpoint: Checkpoint, precision: str, shape: Tokens, device: torch.device, setting: str) -> Iterator[Finding]:
    def make(name: str) -> Callable[[], object]:
        model = _classifier(checkpoint, name, shape.length)
        return _step(model, checkpoint.config.vocab_size, precision, shape, device)

    makers = {name: partial(make, name) for name in (INHIBITOR, PEER)}
    # The first call makes the optimizer's state.
    steps, memory, refused = warm_up(makers, torch.OutOfMemoryError, partial(peak_memory, device))
    for name in refused:
        yield Finding.skipped(name, setting, "out of memory")
    seconds = interleave(steps, _BUDGET)
    for name in steps:
        yield Finding.of(name, setting, "training step", Quantiles.of([1000 * second for second in seconds[name]]), "ms")
        yield Finding(name, setting, "peak memory", memory[name], "B", note="beyond weights and the optimizer's state")
    if len(steps) == 2:
        yield Finding.of(INHIBITOR, setting, f"step / {PEER}", ratios(seconds[INHIBITOR], seconds[PEER]))


def _classifier(checkpoint: Checkpoint, name: str, length: int) -> nn.Module:
    """With a head for two classes and positions for the length; the weights are random."""
    config = type(checkpoint.config).from_dict(checkpoint.config.to_dict() | {"max_position_embeddings": length})
    longer = dataclasses.replace(checkpoint, config=config, architecture="InhibiDistilBertForSequenceClassification")
    torch.manual_seed(SEED)
    return longer.build("inhibitor") if name == INHIBITOR else longer.softmax("sdpa")


def _step(model: nn.Module, vocabulary: int, precision: str, shape: Tokens, device: torch.device) -> Callable[[], object]:
    """One step of AdamW on a batch without padding, which is done when it returns."""
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(1, vocabulary, (shape.batch, shape.length), generator=generator).to(device)
    labels = torch.randint(2, (shape.batch,), generator=generator).to(device)

    def step() -> None:
        with torch.autocast(device.type, DTYPES[precision], enabled=precision != "float32"):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    return step
