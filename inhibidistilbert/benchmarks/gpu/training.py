"""A training step of a model of DistilBERT-base's size beside softmax DistilBERT: time and peak memory by length."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from ...support.memory import peak_memory
from ..contenders import DTYPES, SEED, SUBJECT, Subject
from ..timing import Budget, Quantiles, interleave, ratios, wall_time
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
    subject: Subject | None = None,
    lengths: Sequence[int] = LENGTHS,
    tokens: int = TOKENS,
) -> Iterator[Finding]:
    """Time, ratio and memory of a step at every length, in both precisions."""
    device = torch.device("cuda", torch.cuda.current_device()) if device is None else device
    subject = Subject.load("base") if subject is None else subject
    for precision in PRECISIONS:
        for length in lengths:
            setting = f"{precision}, {max(1, tokens // length)}×{length} tokens"
            if not deadline.leaves(_SECONDS):
                yield Finding.skipped("training step", setting, deadline.reason)
                continue
            try:
                yield from _compare(subject, precision, length, tokens, device, setting)
            except Exception as error:
                yield Finding.failure("training step", setting, error)


def _compare(
    subject: Subject, precision: str, length: int, tokens: int, device: torch.device, setting: str
) -> Iterator[Finding]:
    steps, memory = {}, {}
    for name in (SUBJECT, PEER):
        try:
            step = _step(_classifier(subject, name, length), subject.config.vocab_size, precision, length, tokens, device)
            step()  # compiles, and makes the optimizer's state
            memory[name] = peak_memory(device, step)
        except torch.OutOfMemoryError:
            yield Finding.skipped(name, setting, "out of memory")
            continue
        steps[name] = step
    seconds = interleave(steps, _BUDGET, wall_time)
    for name in steps:
        yield Finding.of(name, setting, "training step", Quantiles.of([1000 * second for second in seconds[name]]), "ms")
        yield Finding(name, setting, "peak memory", memory[name], "B", note="beyond weights and the optimizer's state")
    if len(steps) == 2:
        yield Finding.of(SUBJECT, setting, f"step / {PEER}", ratios(seconds[SUBJECT], seconds[PEER]))


def _classifier(subject: Subject, name: str, length: int) -> nn.Module:
    """With a head for two classes and positions for the length; the weights are random."""
    config = type(subject.config).from_dict(subject.config.to_dict() | {"max_position_embeddings": length})
    longer = dataclasses.replace(subject, config=config, architecture="InhibiDistilBertForSequenceClassification")
    torch.manual_seed(SEED)
    return longer.build("inhibitor") if name == SUBJECT else longer.softmax("sdpa")


def _step(
    model: nn.Module, vocabulary: int, precision: str, length: int, tokens: int, device: torch.device
) -> Callable[[], object]:
    """One step of AdamW on a batch without padding, which is done when it returns."""
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    batch = max(1, tokens // length)
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(1, vocabulary, (batch, length), generator=generator).to(device)
    labels = torch.randint(2, (batch,), generator=generator).to(device)

    def step() -> None:
        with torch.autocast(device.type, DTYPES[precision], enabled=precision != "float32"):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    return step
