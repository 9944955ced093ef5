"""What the benchmarks measure at what shapes, and the files that hold it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from .files import write_csv
from .results import Column, Quantiles, Results, Row

# Shapes.


@dataclass(frozen=True)
class Tokens(Row):
    """Token ids, `(batch, length)`."""

    batch: int
    length: int

    def __str__(self) -> str:
        return f"{self.batch}×{self.length}"


@dataclass(frozen=True)
class Shape(Row):
    """Queries, keys and values, `(batch, heads, length, head_dim)`."""

    batch: int
    heads: int
    length: int
    head_dim: int

    def __str__(self) -> str:
        return f"{self.batch}×{self.heads}×{self.length}×{self.head_dim}"

    @property
    def tokens(self) -> Tokens:
        return Tokens(self.batch, self.length)

    @property
    def projected(self) -> tuple[int, int, int, int]:
        """As the model's projections lay them out in memory: `(batch, length, heads, head_dim)`."""
        return self.batch, self.length, self.heads, self.head_dim

    @property
    def triples(self) -> int:
        """Of a query, a key and a channel."""
        return self.batch * self.heads * self.length**2 * self.head_dim


@dataclass(frozen=True)
class Setting(Row):
    """Where models are compared."""

    dtype: str
    threads: int
    tokens: Tokens


# Rows. A column's older name stays in the files: committed tables and those of published models have it.


@dataclass(frozen=True)
class CpuRow(Row):
    """One peer of `benchmark cpu` at one shape.

    Attributes:
        problem: the name of the shape.
        ratio: to softmax attention in float32, in the same rounds.
        softmax: softmax attention in the peer's own precision, where there is one, and `softmax_ratio` the ratio to it.
    """

    level: str
    problem: str
    shape: Shape
    threads: int
    peer: Annotated[str, Column("rival")]
    rounds: int
    milliseconds: Annotated[Quantiles, Column("ms", digits=4)]
    ratio: Annotated[Quantiles, Column("ratio", digits=4)]
    softmax: Annotated[str | None, Column("peer")]
    softmax_ratio: Annotated[Quantiles | None, Column("peer_ratio", digits=4)]


@dataclass(frozen=True)
class KernelRow(Row):
    """One peer of `benchmark kernels` at one shape.

    Attributes:
        pass_name: `forward` or `forward + backward`.
        milliseconds: over the rounds; None where the memory did not suffice.
        ratio: to softmax attention in float32, in the same rounds.
        share_of_floor: what the operator's arithmetic alone would take, by what it took.
        peak_bytes: allocated beyond the inputs.
        note: why there is no time.
    """

    pass_name: Annotated[str, Column("pass")]
    shape: Shape
    peer: Annotated[str, Column("rival")]
    rounds: int = 0
    milliseconds: Annotated[Quantiles | None, Column("ms")] = None
    ratio: Quantiles | None = None
    share_of_floor: float | None = None
    peak_bytes: int | None = None
    note: str = ""


@dataclass(frozen=True)
class ModelRow(Row):
    """One peer of `benchmark model` at one setting.

    Attributes:
        samples: texts, in all rounds.
        throughput: texts a second.
        p50, p95: quantiles of the milliseconds of a batch.
        peak_bytes: weights, and the work on a batch; None where the system does not tell.
        joules: a text takes; None without a meter.
    """

    peer: Annotated[str, Column("model")]
    setting: Setting
    rounds: int
    samples: int
    throughput: Annotated[Quantiles, Column("samples_per_second", digits=4)]
    p50: Annotated[float, Column("latency_p50_ms", digits=4)]
    p95: Annotated[float, Column("latency_p95_ms", digits=4)]
    weight_bytes: int
    peak_bytes: int | None
    joules: Annotated[float | None, Column("joules_per_sample", optional=True)] = None


@dataclass(frozen=True)
class RatioRow(Row):
    """A model beside a peer: over the rounds the ratios model / peer; None where there is no figure."""

    model: str
    peer: str
    setting: Setting
    throughput: Annotated[Quantiles, Column("throughput_ratio", digits=4)]
    latency: Annotated[Quantiles, Column("latency_ratio", digits=4)]
    memory: Annotated[float | None, Column("memory_ratio", digits=4)]
    energy: Annotated[Quantiles | None, Column("energy_ratio", digits=4, optional=True)] = None


# Files.


@dataclass(frozen=True)
class CpuResults(Results):
    results: list[CpuRow]


@dataclass(frozen=True)
class KernelResults(Results):
    results: list[KernelRow]


@dataclass(frozen=True)
class ModelResults(Results):
    results: list[ModelRow]
    ratios: list[RatioRow]
    told = ("date", "energy")

    def write_csv(self, file: Path) -> None:
        """The medians of the ratios alone, without a header: any reader takes the table as it is."""
        rows = [
            {name: value for name, value in row.items() if not name.endswith(("_p10", "_p90"))}
            for row in self.tables()["ratios"]
        ]
        columns = {name: None for row in rows for name in row}
        if rows:
            write_csv(file, {}, [columns | row for row in rows])
