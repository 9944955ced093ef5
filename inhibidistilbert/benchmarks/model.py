"""A model beside its peers, by the protocol of the InhibiDistilbert paper (arXiv 2503.15983): throughput, latency, peak
memory, and energy where there is a meter.

Texts are random token ids of exactly the length, or real ones cut there; an attention mask goes with them, as from a
tokenizer. A batch is done when its results are there. The peers take turns, in alternating order.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, groupby, product
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from ..support.benchmark_results import ModelRow, RatioRow, Setting, Tokens
from ..support.errors import UserError
from ..support.memory import peak_memory
from ..support.results import Quantiles
from .energy import Meter
from .engines import ENGINES, Graph, Session
from .operators import AUTHORS
from .peers import INHIBITOR, Checkpoint, ModelPeer, build, weight_bytes, write_graph
from .timing import SEED, Budget, Refused, interleave, ratios, torch_threads, wall_time, warm_up

BATCHES, LENGTHS = (1, 8, 16, 32), (128, 256, 512)
DEFAULT_PEERS = ("softmax_sdpa", "softmax_eager", AUTHORS)
# Energy counters are renewed every 20 to 100 ms, on some GPUs: a window of less would be mostly chance.
METERED_SECONDS = 0.5
# Inputs that take turns, so that none lies in a cache when it is used again.
_INPUTS = 4

Batch = Mapping[str, Tensor]
MakeInputs = Callable[[Checkpoint, Setting, torch.device], list[Batch]]


@dataclass(frozen=True)
class Protocol:
    """What is measured at what shapes.

    Attributes:
        shapes: in place of all batches at all lengths.
        samples: texts in a measurement, at least.
        repetitions: measurements.
        seconds: no further rounds of a comparison after that time, but as many as there are repetitions.
        max_tokens: batches of more tokens than that are left out.
    """

    batches: Sequence[int] = BATCHES
    lengths: Sequence[int] = LENGTHS
    shapes: Sequence[Tokens] = ()
    threads: Sequence[int] = (1,)
    dtypes: Sequence[str] = ("float32",)
    samples: int = 1000
    repetitions: int = 3
    seconds: float = math.inf
    max_tokens: float = math.inf

    @property
    def settings(self) -> list[Setting]:
        """Every combination, a dtype after the other, so that the models are built once each."""
        shapes = self.shapes or [Tokens(batch, length) for length, batch in product(self.lengths, self.batches)]
        points = product(self.dtypes, self.threads, shapes)
        return [Setting(*point) for point in points if point[-1].batch * point[-1].length <= self.max_tokens]


@dataclass(frozen=True)
class Window:
    """What one peer did in one round.

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
    """One peer at one setting: its windows, a round each, bytes of its weights, and of these and its work on a batch."""

    setting: Setting
    name: str
    windows: Sequence[Window]
    weight_bytes: int
    peak_bytes: int | None

    def row(self) -> ModelRow:
        latencies = torch.tensor([x for window in self.windows for x in window.latencies], dtype=torch.float64)
        p50, p95 = (1000 * latencies.quantile(torch.tensor([0.5, 0.95], dtype=torch.float64))).tolist()
        joules = [window.joules_per_sample for window in self.windows if window.joules_per_sample is not None]
        return ModelRow(
            peer=self.name,
            setting=self.setting,
            rounds=len(self.windows),
            samples=sum(window.samples for window in self.windows),
            throughput=Quantiles.of([1 / window.seconds_per_sample for window in self.windows]),
            p50=p50,
            p95=p95,
            weight_bytes=self.weight_bytes,
            peak_bytes=self.peak_bytes,
            joules=float(f"{Quantiles.of(joules).median:.5g}") if joules else None,
        )

    def beside(self, peer: "Measurement") -> RatioRow:
        """The ratios to another at the same setting."""
        seconds, peer_seconds = ([w.seconds_per_sample for w in x.windows] for x in (self, peer))
        latency, peer_latency = ([Quantiles.of(w.latencies).median for w in x.windows] for x in (self, peer))
        energies = [
            one.joules_per_sample / two.joules_per_sample
            for one, two in zip(self.windows, peer.windows, strict=True)
            if one.joules_per_sample is not None and two.joules_per_sample is not None
        ]
        memory = None
        if self.peak_bytes is not None and peer.peak_bytes is not None:
            memory = self.peak_bytes / peer.peak_bytes
        return RatioRow(
            model=self.name,
            peer=peer.name,
            setting=self.setting,
            throughput=ratios(peer_seconds, seconds),
            latency=ratios(latency, peer_latency),
            memory=memory,
            energy=Quantiles.of(energies) if energies else None,
        )


# Inputs.


def random_inputs(checkpoint: Checkpoint, setting: Setting, device: torch.device) -> list[Batch]:
    """Batches of token ids without padding, the same for every peer."""
    generator = torch.Generator().manual_seed(SEED)
    shape = (setting.tokens.batch, setting.tokens.length)
    drawn = [torch.randint(1, checkpoint.config.vocab_size, shape, generator=generator) for _ in range(_INPUTS)]
    return [{"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)} for ids in drawn]


def text_inputs(tokenizer: Any, texts: Sequence[str]) -> MakeInputs:
    """Batches of the texts in their order, cut at the setting's length, padded to the longest of a batch."""

    def inputs(checkpoint: Checkpoint, setting: Setting, device: torch.device) -> list[Batch]:
        turns, batch = cycle(texts), setting.tokens.batch
        count = max(_INPUTS, math.ceil(len(texts) / batch))
        options = {"padding": True, "truncation": True, "max_length": setting.tokens.length, "return_tensors": "pt"}
        drawn = [tokenizer([next(turns) for _ in range(batch)], **options) for _ in range(count)]
        return [{name: x[name].to(device) for name in ("input_ids", "attention_mask")} for x in drawn]

    return inputs


# Running it.


@dataclass
class _Running:
    """A peer at one setting, and what it has done."""

    name: str
    model: nn.Module | Session
    inputs: Iterator[Batch]
    device: torch.device
    clock: Callable[[], float]
    meter: Meter | None
    batches: int = 1
    windows: list[Window] = field(default_factory=list)

    def __call__(self) -> int:
        """Run the next batch to its end; its size."""
        inputs = next(self.inputs)
        self.model(**inputs)
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return len(inputs["input_ids"])

    def window(self) -> None:
        """Run the batches of a round and note them."""
        latencies: list[float] = []
        samples: list[int] = []

        def work() -> None:
            for _ in range(self.batches):
                start = self.clock()
                samples.append(self())
                latencies.append(self.clock() - start)

        joules = None
        if self.meter is None:
            work()
        else:
            joules = self.meter.joules(work) or None
        self.windows.append(Window(sum(samples), latencies, joules))


def check(checkpoint: Checkpoint, protocol: Protocol) -> None:
    """Raises `UserError` where the checkpoint cannot take the protocol's shapes."""
    if not protocol.settings:
        raise UserError(f"--max-tokens {protocol.max_tokens:g} leaves no batch; it must be at least batch times length.")
    limit = checkpoint.config.max_position_embeddings
    longest = max(setting.tokens.length for setting in protocol.settings)
    if longest > limit:
        raise UserError(f"--length must be at most {limit}, the checkpoint's positions; got {longest}.")


@torch.inference_mode()
def run(
    checkpoint: Checkpoint,
    peers: Sequence[ModelPeer],
    protocol: Protocol,
    device: torch.device,
    *,
    meter: Meter | None = None,
    make_inputs: MakeInputs = random_inputs,
    progress: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[Measurement], dict[str, str]]:
    """Measure the checkpoint and its peers at every setting; `progress` is called after each.

    Returns the measurements, and for each peer that could not take part why.

    Raises:
        UserError: the checkpoint itself cannot take part.
    """
    check(checkpoint, protocol)
    found: list[Measurement] = []
    refusals: dict[str, str] = {}
    models: dict[str, nn.Module | Graph] = {}
    # torch compiles for every shape and number of threads, and would give up after a few.
    with TemporaryDirectory() as graphs, torch._dynamo.config.patch(recompile_limit=1000):
        for dtype, settings in groupby(protocol.settings, key=attrgetter("dtype")):
            models.clear()  # before others take their place in memory
            models |= _build_all(checkpoint, peers, dtype, device, Path(graphs), refusals)
            for setting in settings:
                with torch_threads(setting.threads):
                    inputs = make_inputs(checkpoint, setting, device)
                    found += measure(models, inputs, setting, protocol, device, meter, clock, refusals)
                progress()
    return found, refusals


def _build_all(
    checkpoint: Checkpoint,
    peers: Sequence[ModelPeer],
    dtype: str,
    device: torch.device,
    graphs: Path,
    refusals: dict[str, str],
) -> dict[str, nn.Module | Graph]:
    models: dict[str, nn.Module | Graph] = {}
    everyone = (ModelPeer(INHIBITOR), *peers)
    for peer in everyone:
        if peer.dtype == dtype and ModelPeer(peer.name) in everyone:
            continue  # it is there without the dtype
        try:
            if peer.name in ENGINES:
                models[str(peer)] = write_graph(checkpoint, peer, dtype, device, graphs)
            else:
                models[str(peer)] = build(checkpoint, peer, dtype, device)
        except Refused as refusal:
            if peer == ModelPeer(INHIBITOR):
                raise UserError(f"--dtype {dtype}: {refusal}.") from refusal
            refusals[f"{peer} ({dtype})"] = str(refusal)
    return models


def measure(
    models: Mapping[str, nn.Module | Graph],
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
        UserError: the one that is called `INHIBITOR` cannot take part.
    """

    def ready(name: str, model: nn.Module | Graph) -> _Running:
        started = model.start(inputs[0]) if isinstance(model, Graph) else model
        return _Running(name, started, cycle(inputs), device, clock, meter)

    makers = {name: partial(ready, name, model) for name, model in models.items()}
    limits = (torch.OutOfMemoryError, NotImplementedError, Refused, TorchDynamoException)
    running, memory, refused = warm_up(makers, limits, partial(peak_memory, device))
    batch, length = setting.tokens.batch, setting.tokens.length
    for name, error in refused.items():
        if name == INHIBITOR:
            raise UserError(f"the checkpoint cannot be measured at {setting.tokens} tokens in {setting.dtype}: {error}")
        why = str(error) if isinstance(error, Refused) else type(error).__name__
        refusals[f"{name} ({setting.dtype}, batch {batch}, length {length})"] = why
    fastest = min(wall_time(peer, clock) for peer in running.values())
    batches = 1 if meter is None else max(1, math.ceil(METERED_SECONDS / fastest))
    for peer in running.values():
        peer.batches = batches
    rounds = max(protocol.repetitions, math.ceil(protocol.samples * protocol.repetitions / (batch * batches)))
    budget = Budget(protocol.seconds, least=protocol.repetitions, most=rounds)
    interleave({name: peer.window for name, peer in running.items()}, budget)
    for name, peer in running.items():
        weights, working = weight_bytes(peer.model), memory[name]
        # An engine keeps the memory that it worked in, so that a later call shows none of it.
        peak = peer.model.held_bytes if isinstance(peer.model, Session) else None if working is None else weights + working
        yield Measurement(setting, name, peer.windows, weights, peak)


# What comes of it.


def compare(measurements: Sequence[Measurement]) -> list[RatioRow]:
    """The checkpoint beside each peer, and the authors' formulation beside each softmax peer, at every setting."""
    found = []
    for setting in dict.fromkeys(measurement.setting for measurement in measurements):
        here = {x.name: x for x in measurements if x.setting == setting}
        for model in (INHIBITOR, AUTHORS):
            for peer in here:
                if model in here and peer not in (INHIBITOR, model):
                    found.append(here[model].beside(here[peer]))
    return found


def ratio_cells(rows: Sequence[RatioRow]) -> list[list[str]]:
    """A table for people: titles, then a comparison a line, ratios with their 10 % and 90 % quantiles."""
    titles = ["model", "peer", "dtype", "threads", "batch", "length", "throughput", "latency", "memory", "energy"]
    lines = []
    for row in rows:
        memory, energy = "" if row.memory is None else f"{row.memory:.2f}", str(row.energy or "")
        place = map(str, row.setting.as_dict().values())
        lines.append([row.model, row.peer, *place, str(row.throughput), str(row.latency), memory, energy])
    columns = len(titles) if any(row.energy for row in rows) else -1
    return [line[:columns] for line in (titles, *lines)]


def markdown(rows: Sequence[RatioRow]) -> str:
    """The same in Markdown."""
    titles, *lines = ("| " + " | ".join(line) + " |" for line in ratio_cells(rows))
    rule = "|---|---|---|" + "---:|" * (titles.count("|") - 4)
    return "\n".join([titles, rule, *lines]) + "\n"
