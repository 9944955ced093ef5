"""`inhibidistilbert benchmark model`: what a checkpoint costs beside softmax DistilBERT."""

import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..support.errors import UserError
from ..support.text_rows import NotUtf8, read_lines
from .output import (
    JsonOption,
    OutputOption,
    check_positive,
    check_threads,
    left_out,
    new_table,
    print_table,
    processor_table,
    progress_bar,
    save,
)

if TYPE_CHECKING:
    from ..support.benchmark_results import ModelRow, RatioRow, Tokens


def model(
    checkpoint: Annotated[
        str, typer.Argument(help="A checkpoint folder, or a size with random weights: base, small, tiny.")
    ],
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PEER",
            help="softmax_sdpa, softmax_eager, authors_cdist, torch_compile, onnxruntime, openvino, or a checkpoint folder; "
            "@float32, @int8, … behind it for another dtype than the run's. Repeatable.",
            show_default="the first three",
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(metavar="float32|bfloat16|float16|int8", help="Repeatable.", show_default="float32"),
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Texts. Repeatable.", show_default="1, 8, 16, 32")] = None,
    length: Annotated[list[int] | None, typer.Option(help="Tokens. Repeatable.", show_default="128, 256, 512")] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="BATCHxLENGTH", help="In place of --batch and --length, such as 8x128. Repeatable."),
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option(help="Threads of torch. Repeatable.", show_default="as torch has it")
    ] = None,
    samples: Annotated[int, typer.Option(help="Texts in a measurement, at least.")] = 1000,
    repetitions: Annotated[int, typer.Option(help="Measurements.")] = 3,
    seconds: Annotated[
        float | None,
        typer.Option(help="End a comparison after that time, at the earliest after a round for each repetition."),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Leave out batches of more tokens.")] = None,
    text_file: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Real texts, one a line, cut at the length.", show_default="random tokens"),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, …; auto takes the accelerator when there is one.")] = "auto",
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure throughput, latency, peak memory and energy of a checkpoint beside its peers of the same size.

    The protocol of the InhibiDistilbert paper, with longer texts too. The peers take turns; what counts are the ratios,
    medians over the rounds. onnxruntime and openvino, of the extras onnx and openvino, run softmax DistilBERT; their memory
    is what the process grows by, that of others weights and work. Energy is read where there is a meter
    (pip install "zeus>=0.12") and is left out otherwise. With --output: model_cpu_<kind>.csv (ratios), .json (everything),
    .png and .md, named by the kind of processor, such as model_cpu_avx2; on a GPU model_gpu.….
    """
    counts = {"--samples": [samples], "--repetitions": [repetitions]}
    for name, values in {"--batch": batch, "--length": length, **counts}.items():
        for value in values or ():
            check_positive(name, value)
    if shape and (batch or length):
        raise UserError("--shape takes the place of --batch and --length; give one or the other.")
    check_threads(threads or ())
    if seconds is not None and not seconds > 0:
        raise UserError(f"--seconds must be above 0; got {seconds}.")

    import torch

    from ..benchmarks import energy
    from ..benchmarks import model as comparison
    from ..benchmarks.peers import DTYPES, Checkpoint, ModelPeer
    from ..benchmarks.timing import SEED
    from ..prediction import find_device
    from ..support import files, machine
    from ..support.benchmark_results import ModelResults

    for name in dtype or ():
        if name not in DTYPES:
            raise UserError(f"--dtype must be one of {', '.join(DTYPES)}; got {name!r}.")
    where = find_device(device)
    peers = list(dict.fromkeys(ModelPeer.parse(text) for text in against or comparison.DEFAULT_PEERS))
    measured = Checkpoint.load(checkpoint)
    protocol = comparison.Protocol(
        batches=batch or comparison.BATCHES,
        lengths=length or [x for x in comparison.LENGTHS if x <= measured.config.max_position_embeddings],
        shapes=[read_shape(text) for text in shape or ()],
        threads=threads or [torch.get_num_threads()],
        dtypes=dtype or ["float32"],
        samples=samples,
        repetitions=repetitions,
        seconds=math.inf if seconds is None else seconds,
        max_tokens=math.inf if max_tokens is None else max_tokens,
    )
    comparison.check(measured, protocol)
    make_inputs: comparison.MakeInputs = comparison.random_inputs
    inputs = "random tokens, every text of exactly the length"
    if text_file is not None:
        make_inputs = comparison.text_inputs(measured.tokenizer(), read_texts(text_file))
        inputs = f"the texts of {text_file.name}, cut at the length, padded to the longest of a batch"
    files.prepare_output(output)
    name = processor_table(output, "model_cpu") if where.type == "cpu" else "model_gpu.json"
    meter, source = None, ""
    try:
        meter = energy.find_meter(where)
        source = meter.source
    except energy.NoMeter as why:
        source = f"none: {why}"
        print(f"note: energy is not measured: {why}.", file=sys.stderr)

    with progress_bar("Measuring", len(protocol.settings)) as advance:
        measurements, refusals = comparison.run(
            measured, peers, protocol, where, meter=meter, make_inputs=make_inputs, progress=advance
        )
    accelerator = torch.cuda.get_device_name(where) if where.type == "cuda" else str(where)
    header = machine.header(
        **({} if where.type == "cpu" else {"gpu": accelerator}),
        seed=SEED,
        weights=measured.weights,
        inputs=inputs,
        samples=f"{samples} a measurement, {repetitions} measurements"
        + ("" if seconds is None else f", {seconds:g} s a comparison at most but a batch a measurement"),
        energy=source,
        **left_out(refusals),
    )
    rows, ratios = [measurement.row() for measurement in measurements], comparison.compare(measurements)
    results = ModelResults(header, rows, ratios)
    if output is not None:
        file = output / name
        files.write_text(file.with_suffix(".md"), comparison.markdown(ratios))
        save(results, file)
    if as_json:
        print(json.dumps(results.tables()))
    else:
        print_models(rows)
        print_ratios(ratios)


def read_shape(text: str) -> "Tokens":
    """Of `8x128`. Raises `UserError` where it is none."""
    from ..support.benchmark_results import Tokens

    found = re.fullmatch(r"0*([1-9]\d{0,8})x0*([1-9]\d{0,8})", text, re.ASCII)
    if found is None:
        raise UserError(f"--shape must be texts x tokens, such as 8x128; got {text!r}.")
    return Tokens(*map(int, found.groups()))


def read_texts(file: Path) -> list[str]:
    """The lines of a text file that are not blank. Raises `UserError` where there is none."""
    try:
        with file.open("rb") as stream:
            texts = [line for line in read_lines(stream) if line.strip()]
    except (OSError, NotUtf8) as error:
        raise UserError(f"--text-file {str(file)!r} cannot be read as UTF-8 text: {error}.") from error
    if not texts:
        raise UserError(f"--text-file {str(file)!r} holds no text; give one a line.")
    return texts


def print_models(rows: "Sequence[ModelRow]") -> None:
    """A table for people, one peer at one setting a line."""
    metered = any(row.joules is not None for row in rows)
    titles = ("texts/s", "p50 ms", "p95 ms", "peak MiB", *(["J/text"] if metered else []))
    table = new_table(("model", "dtype"), ("threads", "batch", "length", *titles))
    for row in rows:
        cells = [f"{row.throughput.median:.1f}", f"{row.p50:.2f}", f"{row.p95:.2f}"]
        cells.append("" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}")
        cells += [] if not metered else ["" if row.joules is None else f"{row.joules:.4g}"]
        table.add_row(row.peer, *map(str, row.setting.as_dict().values()), *cells)
    print_table(table)


def print_ratios(rows: "Sequence[RatioRow]") -> None:
    """A table for people: ratios model / peer with their 10 % and 90 % quantiles."""
    from ..benchmarks.model import ratio_cells

    titles, *lines = ratio_cells(rows)
    table = new_table(titles[:3], titles[3:])
    for line in lines:
        table.add_row(*line)
    print_table(table)
