"""A model of DistilBERT-base's size beside softmax DistilBERT, by the paper's protocol, in every way to run it.

The weights are random, which changes no speed. Two kinds of text: full ones of 128 tokens, and sentences, padded to the
longest of a batch. What is compared runs the same way; the ratios are medians over the rounds.
"""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...support.benchmark_results import Setting, Tokens
from .. import energy
from .. import model as protocol_of
from ..model import Batch, Protocol
from ..peers import INHIBITOR, Checkpoint, ModelPeer, build
from ..timing import SEED
from .execution import EAGER, MODES
from .findings import Deadline, Finding

PEER = "softmax_sdpa"
FULL, SENTENCES = "128 tokens", "sentences"
LENGTH = 128
# Tokens with both special ones, by DistilBERT's tokenizer, of the 8,530 sentences of Rotten Tomatoes' training split (the
# sentences of SST-2): sixteen quantiles, from 1/32 to 31/32. 83 % have 10 to 40.
SENTENCE_LENGTHS = (9, 13, 15, 18, 20, 22, 24, 26, 28, 29, 31, 34, 36, 39, 43, 50)
# To multiples of this, as for matrix units; and there are few shapes to capture.
_PADDED_TO = 8
_FULL_BATCHES = 4

_FIGURES = (
    ("throughput", "throughput", "texts/s"),
    ("latency", "p50", "ms"),
    ("energy", "joules", "J/text"),
    ("peak memory", "peak_bytes", "B"),
)
_RATIOS = tuple((f"{name} ratio", name, "") for name in ("throughput", "energy", "memory"))
_PROTOCOL = Protocol(samples=1000, repetitions=3, seconds=1.5)
# What a mode of one place takes, and with torch.compile where it has to compile.
_SECONDS, _COMPILING_SECONDS = 6, 25
# Half types of one model against another way to run the same: far beyond rounding, and far below what is wrong.
_MOST_DIFFERENCE = 0.05


@dataclass(frozen=True)
class Place:
    """Where a comparison takes place."""

    dtype: str
    texts: str
    batch: int
    modes: Sequence[str] = tuple(MODES)

    def __str__(self) -> str:
        return f"{self.dtype}, {self.texts}, batch {self.batch}"


_FP16_MODES = (EAGER, "CUDA graph")
# What the goals are about first: what comes last is left out when time is short.
PLACES = (
    *(Place("bfloat16", texts, batch) for batch in (1, 32) for texts in (SENTENCES, FULL)),
    *(Place("bfloat16", texts, batch) for batch in (8, 16) for texts in (SENTENCES, FULL)),
    *(Place("float16", texts, batch, _FP16_MODES) for batch in (1, 32) for texts in (SENTENCES, FULL)),
)


def texts(place: Place, vocabulary: int, device: torch.device) -> list[Batch]:
    """Batches of random tokens, a mask where there is padding; the same for all peers.

    A batch of one needs no padding: a sentence of each length, in random order. Else the lengths are drawn.
    """
    generator, drawn = torch.Generator().manual_seed(SEED), random.Random(SEED)
    if place.texts == FULL:
        lengths = [[LENGTH] * place.batch] * _FULL_BATCHES
    elif place.batch == 1:
        lengths = [[length] for length in drawn.sample(SENTENCE_LENGTHS, len(SENTENCE_LENGTHS))]
    else:
        lengths = [drawn.choices(SENTENCE_LENGTHS, k=place.batch) for _ in SENTENCE_LENGTHS]
    return [_batch(each, vocabulary, generator, device) for each in lengths]


def _batch(lengths: list[int], vocabulary: int, generator: torch.Generator, device: torch.device) -> Batch:
    longest = max(lengths)
    if min(lengths) != longest:
        longest = -(-longest // _PADDED_TO) * _PADDED_TO
    ids = torch.randint(1, vocabulary, (len(lengths), longest), generator=generator)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    if mask.all():
        return {"input_ids": ids.to(device)}
    return {"input_ids": (ids * mask).to(device), "attention_mask": mask.long().to(device)}


def measure(
    deadline: Deadline,
    device: torch.device | None = None,
    checkpoint: Checkpoint | None = None,
    places: Sequence[Place] = PLACES,
    protocol: Protocol = _PROTOCOL,
) -> Iterator[Finding]:
    """Throughput, latency, energy and their ratios at every place, in every mode."""
    device = torch.device("cuda", torch.cuda.current_device()) if device is None else device
    checkpoint = Checkpoint.load("base") if checkpoint is None else checkpoint
    meter: energy.Meter | None = None
    try:
        meter = energy.find_meter(device)
        yield Finding("energy", note=meter.source)
    except energy.NoMeter as why:
        yield Finding.skipped("energy", "", str(why))
    models: dict[str, dict[str, nn.Module]] = {}
    for dtype in dict.fromkeys(place.dtype for place in places):
        models.clear()
        broken = set()
        for place in (place for place in places if place.dtype == dtype):
            inputs = texts(place, checkpoint.config.vocab_size, device)
            for mode in place.modes:
                seconds = _COMPILING_SECONDS if "compile" in mode else _SECONDS
                if mode in broken or not deadline.leaves(seconds):
                    yield Finding.skipped(mode, str(place), "it failed before" if mode in broken else deadline.reason)
                    continue
                try:
                    _prepare(models, mode, checkpoint, dtype, device)
                    yield from _compare(models[mode], models[EAGER], inputs, place, mode, device, meter, protocol)
                except Exception as error:  # the other modes may well work
                    broken.add(mode)
                    yield Finding.failure(mode, str(place), error)


def _prepare(
    models: dict[str, dict[str, nn.Module]], mode: str, checkpoint: Checkpoint, dtype: str, device: torch.device
) -> None:
    """Add both peers in that mode, by name; those of every mode have the same weights."""
    if mode in models:
        return
    if mode == EAGER:
        models[mode] = {name: build(checkpoint, ModelPeer(name), dtype, device) for name in (INHIBITOR, PEER)}
        return
    origin, wrap = MODES[mode]
    _prepare(models, origin, checkpoint, dtype, device)
    models[mode] = {name: wrap(model) for name, model in models[origin].items()}


@torch.inference_mode()
def _compare(
    models: Mapping[str, nn.Module],
    eager: Mapping[str, nn.Module],
    inputs: list[Batch],
    place: Place,
    mode: str,
    device: torch.device,
    meter: energy.Meter | None,
    protocol: Protocol,
) -> list[Finding]:
    for name, model in models.items():
        for batch in inputs:  # every shape: nothing is compiled or captured while time runs
            _assert_same(model(**batch).last_hidden_state, eager[name](**batch).last_hidden_state, batch, name)
    refusals: dict[str, str] = {}
    where = Setting(place.dtype, torch.get_num_threads(), Tokens(place.batch, LENGTH))
    measured = protocol_of.measure(models, inputs, where, protocol, device, meter, time.perf_counter, refusals)
    by_name = {each.name: each for each in measured}
    found: list[Finding] = []
    for name, each in by_name.items():
        found += Finding.of_row(f"{name}, {mode}", str(place), each.row(), _FIGURES)
    found += [Finding.skipped(f"{PEER}, {mode}", str(place), reason) for reason in refusals.values()]
    if PEER in by_name:
        found += Finding.of_row(mode, str(place), by_name[INHIBITOR].beside(by_name[PEER]), _RATIOS)
    return found


def _assert_same(got: Tensor, want: Tensor, batch: Batch, name: str) -> None:
    """Compares the real tokens alone: what is computed at padding does not matter."""
    if "attention_mask" in batch:
        real = batch["attention_mask"].bool()
        got, want = got[real], want[real]
    got, want = got.float(), want.float()
    difference = ((got - want).norm() / want.norm()).item()
    if not difference < _MOST_DIFFERENCE:
        raise RuntimeError(f"{name} gives another result than in eager mode: relative difference {difference:.3g}")
