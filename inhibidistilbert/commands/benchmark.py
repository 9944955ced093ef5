"""`inhibidistilbert benchmark`: `kernels` counts instructions or takes times on a GPU, `cpu` takes times on the CPU, `model`
compares a checkpoint with its peers, `gpu` measures all that a GPU can show."""

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..support.errors import UserError
from .benchmark_gpu import gpu
from .benchmark_model import model
from .output import (
    JsonOption,
    OutputOption,
    check_positive,
    check_threads,
    deliver,
    left_out,
    new_table,
    number,
    print_table,
    processor_table,
    progress_bar,
)

if TYPE_CHECKING:
    from ..benchmarks.static import StaticResults
    from ..support.benchmark_results import CpuResults, KernelResults

benchmark_app = typer.Typer(
    name="benchmark", help="Measure the kernels and the models.", no_args_is_help=True, rich_markup_mode=None
)
benchmark_app.command(short_help="A checkpoint beside its peers of the same size.")(model)
benchmark_app.command(short_help="All that the GPU of this machine can show.")(gpu)


@benchmark_app.command(short_help="The Triton kernels: times, or counts of instructions.")
def kernels(
    static: Annotated[
        bool, typer.Option("--static", help="Compile and count instructions, for GPUs that need not be there.")
    ] = False,
    target: Annotated[
        list[str] | None, typer.Option(help="With --static: the GPU. Repeatable.", show_default="every supported one")
    ] = None,
    head_dim: Annotated[
        list[int] | None, typer.Option(help="Head size. Repeatable with --static.", show_default="64, with --static 32 too")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --static: keep assembly, machine code and disassembly there.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="With --static: processes.", show_default="one a processor")] = None,
    length: Annotated[list[int] | None, typer.Option(help="Tokens. Repeatable.", show_default="64, 128, … 4096")] = None,
    batch: Annotated[int, typer.Option(help="Sequences in a batch.")] = 8,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = 12,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the Triton kernels: times on the GPU of this machine, or with --static instruction counts without one.

    A count is all instructions of the innermost loop, integer and floating-point, of every lane, for one triple of query,
    key and channel. Times are taken side by side with softmax attention and with the operator composed of torch's own.
    """
    if static:
        count_instructions(target, head_dim, keep, jobs, output, as_json)
    else:
        time_kernels(head_dim or [64], length, batch, heads, output, as_json)


def count_instructions(
    targets: list[str] | None,
    head_dims: list[int] | None,
    keep: Path | None,
    jobs: int | None,
    output: Path | None,
    as_json: bool,
) -> None:
    from ..benchmarks import static
    from ..support import files, machine

    chosen, sizes = targets or list(static.TARGETS), head_dims or list(static.HEAD_DIMS)
    static.check_cases(chosen, sizes)
    if jobs is not None:
        check_positive("--jobs", jobs)
    files.prepare_output(output)
    cases = static.default_cases(chosen, sizes)
    with progress_bar("Compiling", len(cases)) as advance:
        rows = static.count(cases, keep, jobs, advance)
    deliver(static.StaticResults(machine.header(), rows), output, "kernels_static.json", as_json, print_counts)


def print_counts(content: "StaticResults") -> None:
    """A table for people, one kernel a line."""
    names = ("kernel", "target", "d", "dtype", "variant")
    table = new_table(names, ("registers", "spills", "shared", "a triple", "pre-pass"))
    for row in content.results:
        place = (row.variant.target, str(row.variant.head_dim), row.variant.dtype, ", ".join(row.variant.words))
        sizes = map(str, (row.registers, row.spills, row.shared_bytes))
        costs = map(number, (row.instructions_per_triple, row.prepass_instructions_per_triple))
        table.add_row(row.kernel.strip("_"), *place, *sizes, *costs)
    print_table(table)


def time_kernels(
    head_dims: list[int], lengths: list[int] | None, batch: int, heads: int, output: Path | None, as_json: bool
) -> None:
    from ..benchmarks import kernels_gpu, static
    from ..benchmarks.timing import SEED
    from ..support import files, machine
    from ..support.benchmark_results import KernelResults, Shape

    for name, value in (("--batch", batch), ("--heads", heads), *(("--length", x) for x in lengths or ())):
        check_positive(name, value)
    for head_dim in head_dims:
        static.check_head_dim(head_dim)
    device = kernels_gpu.find_gpu()
    files.prepare_output(output)
    sizes = product(head_dims, lengths or kernels_gpu.LENGTHS)
    shapes = [Shape(batch, heads, length, head_dim) for head_dim, length in sizes]
    with progress_bar("Timing", 2 * len(shapes)) as advance:
        rows = kernels_gpu.run(device, shapes, kernels_gpu.peers(), advance)
    header = machine.header(gpu=device.name, seed=SEED)
    deliver(KernelResults(header, rows), output, "kernels_gpu.json", as_json, print_kernel_times)


def print_kernel_times(content: "KernelResults") -> None:
    """A table for people, one peer at one shape a line."""
    table = new_table(("pass", "shape", "peer"), ("ms", "ratio", "of the floor", "peak MiB"))
    for row in content.results:
        times, ratio = (None if each is None else each.median for each in (row.milliseconds, row.ratio))
        table.add_row(
            row.pass_name,
            str(row.shape),
            row.peer,
            row.note or number(times, 3),
            number(ratio),
            "" if row.share_of_floor is None else f"{row.share_of_floor:.0%}",
            "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}",
        )
    print_table(table)


@benchmark_app.command(short_help="Inhibitor beside softmax attention on the CPU.")
def cpu(
    level: Annotated[
        list[str] | None,
        typer.Option(metavar="operator|training|fallback|layer|model", help="Repeatable.", show_default="all"),
    ] = None,
    threads: Annotated[list[int] | None, typer.Option(help="Threads of torch. Repeatable.", show_default="1 and 2")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Toy sizes, to see that it runs: the times mean nothing.")] = False,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time inhibitor attention beside softmax attention on the CPU, in float32, bfloat16 and int8.

    The operator forward, the operator forward and backward (training), its plain torch form (fallback), a layer, and a
    model of DistilBERT-base's size with random weights. All in one run, in turns; what counts are the ratios, medians over
    the rounds. Takes six to eight minutes with AVX-512, up to twenty without. With --output: cpu_<kind>.csv, .json and .png,
    named by the kind of processor, such as cpu_avx2 or cpu_amx.
    """
    from ..benchmarks import cpu as comparison
    from ..benchmarks.timing import SEED
    from ..support import files, machine
    from ..support.benchmark_results import CpuResults

    levels = comparison.levels(quick)
    unknown = set(level or ()) - {each.name for each in levels}
    if unknown:
        names = ", ".join(each.name for each in levels)
        raise UserError(f"--level must be one of {names}; got {sorted(unknown)[0]!r}.")
    check_threads(threads or ())
    files.prepare_output(output)
    file = processor_table(output, "cpu")
    chosen = [each for each in levels if not level or each.name in level]
    numbers = threads or [1, 2]
    with progress_bar("Timing", len(numbers) * sum(len(each.shapes) for each in chosen)) as advance:
        rows, refusals = comparison.run(chosen, numbers, advance)
    header = machine.header(seed=SEED, **left_out(refusals))
    deliver(CpuResults(header, rows), output, file, as_json, print_cpu_times)


def print_cpu_times(content: "CpuResults") -> None:
    """A table for people, one peer at one shape a line; ratios with their 10 % and 90 % quantiles."""
    table = new_table(("level", "threads", "shape", "peer"), ("ms", "to softmax fp32", "to its softmax"))
    for row in content.results:
        shape, milliseconds = f"{row.problem} {row.shape}", number(row.milliseconds.median, 3)
        ratios = (str(row.ratio), str(row.softmax_ratio or ""))
        table.add_row(row.level, str(row.threads), shape, row.peer, milliseconds, *ratios)
    print_table(table)
