"""A model beside its peers, by the protocol of the InhibiDistilbert paper (arXiv 2503.15983): throughput, latency, peak
memory, and energy where there is a meter.

Texts are random token ids of exactly the length, or real ones cut there; an attention mask goes with them, as from a
tokenizer. A batch is done when its results are there. The contenders take turns, in alternating order.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, product
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..support.errors import UserError
from ..support.memory import peak_memory
from .composed import AUTHORS
from .contenders import SEED, SUBJECT, Peer, Subject, build, weight_bytes
from .cpu import Refused
from .energy import Meter
from .timing import Budget, Quantiles, interleave, ratios, torch_threads

BATCHES, LENGTHS = (1, 8, 16, 32), (128, 256, 512)
DEFAULT_PEERS = ("softmax_sdpa", "softmax_eager", AUTHORS)
# Energy counters are renewed every 20 to 100 ms, on some GPUs: a window of less would be mostly chance.
METERED_SECONDS = 0.5
# Inputs that take turns, so that none lies in a cache when it is used again.
_INPUTS = 4

Batch = Mapping[str, Tensor]
MakeInputs = Callable[[Subject, "Setting", torch.device], list[Batch]]


@dataclass(frozen=True)
class Protocol:
    """What is measured at what shapes.

    Attributes:
        samples: texts in a measurement, at least.
        repetitions: measurements.
        seconds: no further rounds of a comparison after that time, but as many as there are repetitions.
        max_tokens: batches of more tokens than that are left out.
    """

    batches: Sequence[int] = BATCHES
    lengths: Sequence[int] = LENGTHS
    threads: Sequence[int] = (1,)
    dtypes: Sequence[str] = ("float32",)
    samples: int = 1000
    repetitions: int = 3
    seconds: float = math.inf
    max_tokens: float = math.inf

    @property
    def settings(self) -> list["Setting"]:
        """Every combination, a dtype after the other, so that the models are built once each."""
        points = product(self.dtypes, self.threads, self.lengths, self.batches)
        return [Setting(*point) for point in points if point[-1] * point[-2] <= self.max_tokens]


@dataclass(frozen=True)
class Setting:
    dtype: str
    threads: int
    length: int
    batch: int


@dataclass(frozen=True)
class Window:
    """What one contender did in one round.

    Attributes:
        samples: texts.
        latencies: seconds of each batch.
        joules: None without a meter, or where its counter did not move.
    """

    samples: int
    latencies: Sequence[float]
    joules: float | None = None

    @property
    def seconds_per_sample(self) -> float:
        return sum(self.latencies) / self.samples

    @property
    def joules_per_sample(self) -> float | None:
        return None if self.joules is None else self.joules / self.samples


@dataclass(frozen=True)
class Measurement:
    """One contender at one setting: its windows, a round each, and bytes of its weights and of its work on a batch."""

    setting: Setting
    name: str
    windows: Sequence[Window]
    weight_bytes: int
    working_bytes: int | None

    @property
    def peak_bytes(self) -> int | None:
        """Weights and work together."""
        return None if self.working_bytes is None else self.weight_bytes + self.working_bytes

    def as_dict(self) -> dict[str, Any]:
        throughput = Quantiles.of([1 / window.seconds_per_sample for window in self.windows])
        latencies = torch.tensor([x for window in self.windows for x in window.latencies], dtype=torch.float64)
        p50, p95 = (1000 * latencies.quantile(torch.tensor([0.5, 0.95], dtype=torch.float64))).tolist()
        row: dict[str, Any] = {"model": self.name} | _place(self.setting)
        row |= {"rounds": len(self.windows), "samples": sum(window.samples for window in self.windows)}
        row |= _columns("samples_per_second", throughput)
        row |= {"latency_p50_ms": round(p50, 4), "latency_p95_ms": round(p95, 4)}
        row |= {"weight_bytes": self.weight_bytes, "peak_bytes": self.peak_bytes}
        joules = [window.joules_per_sample for window in self.windows if window.joules_per_sample is not None]
        return row | ({"joules_per_sample": _significant(Quantiles.of(joules).median)} if joules else {})


@dataclass(frozen=True)
class Comparison:
    """A model beside a peer: quantiles over the rounds of the ratios model / peer; None where there is no figure."""

    setting: Setting
    model: str
    peer: str
    throughput: Quantiles
    latency: Quantiles
    memory: float | None
    energy: Quantiles | None

    @classmethod
    def of(cls, mine: Measurement, other: Measurement) -> "Comparison":
        seconds, peer_seconds = ([w.seconds_per_sample for w in x.windows] for x in (mine, other))
        latency, peer_latency = ([Quantiles.of(w.latencies).median for w in x.windows] for x in (mine, other))
        energies = [
            (mine_window.joules_per_sample, other_window.joules_per_sample)
            for mine_window, other_window in zip(mine.windows, other.windows, strict=True)
        ]
        known = [(one, two) for one, two in energies if one is not None and two is not None]
        memory = None
        if mine.peak_bytes is not None and other.peak_bytes is not None:
            memory = mine.peak_bytes / other.peak_bytes
        return cls(
            setting=mine.setting,
            model=mine.name,
            peer=other.name,
            throughput=ratios(peer_seconds, seconds),
            latency=ratios(latency, peer_latency),
            memory=memory,
            energy=Quantiles.of([one / two for one, two in known]) if known else None,
        )

    def as_row(self) -> dict[str, Any]:
        """The columns of the CSV file; energy only where it was measured."""
        row: dict[str, Any] = {"model": self.model, "peer": self.peer} | _place(self.setting)
        row |= {"throughput_ratio": round(self.throughput.median, 4), "latency_ratio": round(self.latency.median, 4)}
        row |= {"memory_ratio": None if self.memory is None else round(self.memory, 4)}
        return row | ({} if self.energy is None else {"energy_ratio": round(self.energy.median, 4)})

    def as_dict(self) -> dict[str, Any]:
        """The same with the 10 % and 90 % quantiles."""
        row = self.as_row() | _columns("throughput_ratio", self.throughput) | _columns("latency_ratio", self.latency)
        return row | ({} if self.energy is None else _columns("energy_ratio", self.energy))


def _place(setting: Setting) -> dict[str, Any]:
    return {"dtype": setting.dtype, "threads": setting.threads, "batch": setting.batch, "length": setting.length}


def _columns(name: str, quantiles: Quantiles) -> dict[str, float]:
    values = (quantiles.median, quantiles.low, quantiles.high)
    return {f"{name}{end}": round(value, 4) for end, value in zip(("", "_p10", "_p90"), values, strict=True)}


def _significant(value: float) -> float:
    return float(f"{value:.5g}")


# Inputs.


def random_inputs(subject: Subject, setting: Setting, device: torch.device) -> list[Batch]:
    """Batches of token ids without padding, the same for every contender."""
    generator = torch.Generator().manual_seed(SEED)
    shape = (setting.batch, setting.length)
    drawn = [torch.randint(1, subject.config.vocab_size, shape, generator=generator) for _ in range(_INPUTS)]
    return [{"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)} for ids in drawn]


def text_inputs(tokenizer: Any, texts: Sequence[str]) -> MakeInputs:
    """Batches of the texts in their order, cut at the setting's length, padded to the longest of a batch."""

    def inputs(subject: Subject, setting: Setting, device: torch.device) -> list[Batch]:
        turns = cycle(texts)
        count = max(_INPUTS, math.ceil(len(texts) / setting.batch))
        options = {"padding": True, "truncation": True, "max_length": setting.length, "return_tensors": "pt"}
        drawn = [tokenizer([next(turns) for _ in range(setting.batch)], **options) for _ in range(count)]
        return [{name: x[name].to(device) for name in ("input_ids", "attention_mask")} for x in drawn]

    return inputs


# Running it.


@dataclass
class _Contestant:
    """A contender at one setting, and what it has done."""

    name: str
    model: nn.Module
    inputs: Iterator[Batch]
    device: torch.device
    clock: Callable[[], float]
    meter: Meter | None
    batches: int = 1
    windows: list[Window] = field(default_factory=list)

    def batch(self) -> int:
        """Run the next batch to its end; its size."""
        inputs = next(self.inputs)
        self.model(**inputs)
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return len(inputs["input_ids"])

    def window(self) -> float:
        """Run the batches of a round and note them; seconds of the round."""
        latencies: list[float] = []
        samples = 0

        def work() -> None:
            nonlocal samples
            for _ in range(self.batches):
                start = self.clock()
                samples += self.batch()
                latencies.append(self.clock() - start)

        if self.meter is None:
            work()
            joules = None
        else:
            joules = self.meter.joules(work) or None
        self.windows.append(Window(samples, latencies, joules))
        return sum(latencies)


def check(subject: Subject, protocol: Protocol) -> None:
    """Raises `UserError` where the subject cannot take the protocol's shapes."""
    if not protocol.settings:
        raise UserError(f"--max-tokens {protocol.max_tokens:g} leaves no batch; it must be at least batch times length.")
    limit = subject.config.max_position_embeddings
    if max(protocol.lengths) > limit:
        raise UserError(f"--length must be at most {limit}, the checkpoint's positions; got {max(protocol.lengths)}.")


@torch.inference_mode()
def run(
    subject: Subject,
    peers: Sequence[Peer],
    protocol: Protocol,
    device: torch.device,
    *,
    meter: Meter | None = None,
    make_inputs: MakeInputs = random_inputs,
    progress: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[Measurement], dict[str, str]]:
    """Measure the subject and its peers at every setting; `progress` is called after each.

    Returns the measurements, and for each contender that could not take part why.

    Raises:
        UserError: the subject itself cannot take part.
    """
    check(subject, protocol)
    found: list[Measurement] = []
    refusals: dict[str, str] = {}
    models: dict[str, nn.Module] = {}
    built_for = None
    for setting in protocol.settings:
        if setting.dtype != built_for:
            models.clear()
            models = _build_all(subject, peers, setting.dtype, device, refusals)
            built_for = setting.dtype
        with torch_threads(setting.threads):
            inputs = make_inputs(subject, setting, device)
            found += measure(models, inputs, setting, protocol, device, meter, clock, refusals)
        progress()
    return found, refusals


def _build_all(
    subject: Subject, peers: Sequence[Peer], dtype: str, device: torch.device, refusals: dict[str, str]
) -> dict[str, nn.Module]:
    models = {}
    for peer in (Peer(SUBJECT), *peers):
        if peer.dtype == dtype and Peer(peer.name) in (Peer(SUBJECT), *peers):
            continue  # it is there without the dtype
        try:
            models[str(peer)] = build(subject, peer, dtype, device)
        except Refused as refusal:
            if peer.name == SUBJECT and peer.dtype is None:
                raise UserError(f"--dtype {dtype}: {refusal}.") from refusal
            refusals[f"{peer} ({dtype})"] = str(refusal)
    return models


def measure(
    models: Mapping[str, nn.Module],
    inputs: list[Batch],
    setting: Setting,
    protocol: Protocol,
    device: torch.device,
    meter: Meter | None,
    clock: Callable[[], float],
    refusals: dict[str, str],
) -> Iterator[Measurement]:
    """Measure models at one setting, in turns; why one could not take part goes into `refusals`.

    Raises:
        UserError: the one that is called `SUBJECT` cannot take part.
    """
    contestants: dict[str, _Contestant] = {}
    memory, seconds = {}, {}
    for name, model in models.items():
        contestant = _Contestant(name, model, cycle(inputs), device, clock, meter)
        try:
            contestant.batch()  # compiles, and fills caches
            memory[name] = peak_memory(device, contestant.batch)
            start = clock()
            contestant.batch()
            seconds[name] = clock() - start
        except (torch.OutOfMemoryError, NotImplementedError) as error:
            if name == SUBJECT:
                raise UserError(f"the checkpoint cannot be measured at {setting}: {error}") from error
            refusals[f"{name} ({setting.dtype}, batch {setting.batch}, length {setting.length})"] = type(error).__name__
            continue
        contestants[name] = contestant
    if meter is not None:
        batches = max(1, math.ceil(METERED_SECONDS / min(seconds.values())))
        for contestant in contestants.values():
            contestant.batches = batches
    window = setting.batch * next(iter(contestants.values())).batches
    rounds = max(protocol.repetitions, math.ceil(protocol.samples * protocol.repetitions / window))
    budget = Budget(protocol.seconds, least=protocol.repetitions, most=rounds)
    windows = {name: contestant.window for name, contestant in contestants.items()}
    interleave(windows, budget, measure=lambda window: cast(float, window()))
    for name, contestant in contestants.items():
        yield Measurement(setting, name, contestant.windows, weight_bytes(contestant.model), memory[name])


# What comes of it.


def compare(measurements: Sequence[Measurement]) -> list[Comparison]:
    """The subject beside each peer, and the authors' formulation beside each softmax peer, at every setting."""
    found = []
    for setting in dict.fromkeys(measurement.setting for measurement in measurements):
        here = {x.name: x for x in measurements if x.setting == setting}
        for model in (SUBJECT, AUTHORS):
            for peer in here:
                if model in here and peer not in (SUBJECT, model):
                    found.append(Comparison.of(here[model], here[peer]))
    return found


def markdown(comparisons: Sequence[Comparison]) -> str:
    """A Markdown table: a comparison a line, ratios with their 10 % and 90 % quantiles."""
    energy = any(comparison.energy for comparison in comparisons)
    titles = ["model", "peer", "dtype", "threads", "batch", "length", "throughput", "latency", "memory"]
    titles += ["energy"] if energy else []
    lines = ["| " + " | ".join(titles) + " |", "|---|---|---|" + "---:|" * (len(titles) - 3)]
    for comparison in comparisons:
        cells = [comparison.model, comparison.peer, *map(str, _place(comparison.setting).values())]
        cells += [shown(comparison.throughput), shown(comparison.latency)]
        cells += ["" if comparison.memory is None else f"{comparison.memory:.2f}"]
        cells += [shown(comparison.energy)] if energy else []
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def shown(quantiles: Quantiles | None) -> str:
    """`0.95 (0.93–0.97)`"""
    return "" if quantiles is None else f"{quantiles.median:.2f} ({quantiles.low:.2f}–{quantiles.high:.2f})"
