"""`inhibidistilbert benchmark model`: what a checkpoint costs beside softmax DistilBERT."""

import json
import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..support.errors import UserError
from ..support.text_rows import NotUtf8, read_lines
from .output import JsonOption, OutputOption, check_positive, new_table, print_table, progress_bar


def model(
    checkpoint: Annotated[
        str, typer.Argument(help="A checkpoint folder, or a size with random weights: base, small, tiny.")
    ],
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PEER",
            help="softmax_sdpa, softmax_eager, authors_cdist, or a checkpoint folder; @float32, @int8, … behind it for "
            "another dtype than the run's. Repeatable.",
            show_default="the first three",
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(metavar="float32|bfloat16|float16|int8", help="Repeatable.", show_default="float32"),
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Texts. Repeatable.", show_default="1, 8, 16, 32")] = None,
    length: Annotated[list[int] | None, typer.Option(help="Tokens. Repeatable.", show_default="128, 256, 512")] = None,
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

    The protocol of the InhibiDistilbert paper, with longer texts too. The contenders take turns; what counts are the ratios,
    medians over the rounds. Energy is read where there is a meter (pip install "inhibidistilbert[energy]") and is left out
    otherwise. With --output: model_cpu.csv (ratios), .json (everything), .png and .md, or model_gpu.….
    """
    for name, values in (("--batch", batch), ("--length", length), ("--threads", threads)):
        for value in values or ():
            check_positive(name, value)
    check_positive("--samples", samples)
    check_positive("--repetitions", repetitions)
    if seconds is not None and not seconds > 0:
        raise UserError(f"--seconds must be above 0; got {seconds}.")

    import torch

    from ..benchmarks import contenders, energy
    from ..benchmarks import model as comparison
    from ..prediction import find_device
    from ..support import files, machine

    for name in dtype or ():
        if name not in contenders.DTYPES:
            raise UserError(f"--dtype must be one of {', '.join(contenders.DTYPES)}; got {name!r}.")
    where = find_device(device)
    peers = list(dict.fromkeys(contenders.Peer.parse(text) for text in against or comparison.DEFAULT_PEERS))
    subject = contenders.Subject.load(checkpoint)
    protocol = comparison.Protocol(
        batches=batch or comparison.BATCHES,
        lengths=length or [x for x in comparison.LENGTHS if x <= subject.config.max_position_embeddings],
        threads=threads or [torch.get_num_threads()],
        dtypes=dtype or ["float32"],
        samples=samples,
        repetitions=repetitions,
        seconds=math.inf if seconds is None else seconds,
        max_tokens=math.inf if max_tokens is None else max_tokens,
    )
    comparison.check(subject, protocol)
    make_inputs: comparison.MakeInputs = comparison.random_inputs
    inputs = "random tokens, every text of exactly the length"
    if text_file is not None:
        make_inputs = comparison.text_inputs(subject.tokenizer(), read_texts(text_file))
        inputs = f"the texts of {text_file.name}, cut at the length, padded to the longest of a batch"
    files.prepare_output(output)
    meter, source = None, ""
    try:
        meter = energy.find_meter(where)
        source = meter.source
    except energy.NoMeter as why:
        source = f"none: {why}"
        print(f"note: energy is not measured: {why}.", file=sys.stderr)

    with progress_bar("Measuring", len(protocol.settings)) as advance:
        measurements, refusals = comparison.run(
            subject, peers, protocol, where, meter=meter, make_inputs=make_inputs, progress=advance
        )
    for contender, reason in refusals.items():
        print(f"note: {contender} is left out: {reason}.", file=sys.stderr)
    comparisons = comparison.compare(measurements)
    rows = [measurement.as_dict() for measurement in measurements]
    if output is not None:
        gpu = (
            {} if where.type == "cpu" else {"gpu": torch.cuda.get_device_name(where) if where.type == "cuda" else str(where)}
        )
        header = machine.header(
            **gpu,
            seed=contenders.SEED,
            weights=subject.weights,
            inputs=inputs,
            samples=f"{samples} a measurement, {repetitions} measurements"
            + ("" if seconds is None else f", {seconds:g} s a comparison at most but a batch a measurement"),
            energy=source,
            **{"left out": "; ".join(f"{name}: {why}" for name, why in refusals.items()) or "nothing"},
        )
        write(output / f"model_{'cpu' if where.type == 'cpu' else 'gpu'}", header, measurements, comparisons)
    if as_json:
        print(json.dumps({"results": rows, "ratios": [each.as_dict() for each in comparisons]}))
    else:
        print_measurements(rows)
        print_comparisons(comparisons)


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


def write(stem: Path, header: dict, measurements: list, comparisons: list) -> None:
    """The ratios as a plain table, everything with the header as JSON, pictures, and a table for a README."""
    from ..benchmarks import model as comparison
    from ..support import files

    rows = [each.as_row() for each in comparisons]
    columns = {name: None for row in rows for name in row}
    # The header is in the JSON file beside it, so that any reader takes the table as it is.
    if rows:
        files.write_csv(stem.with_suffix(".csv"), {}, [columns | row for row in rows])
    files.write_json(
        stem.with_suffix(".json"),
        header,
        [each.as_dict() for each in measurements],
        ratios=[each.as_dict() for each in comparisons],
    )
    files.write_text(stem.with_suffix(".md"), comparison.markdown(comparisons))
    from ..benchmarks import pictures  # when the tables are safe: it needs matplotlib

    pictures.draw(stem.with_suffix(".json"))


def print_measurements(rows: list[dict]) -> None:
    """A table for people, one contender at one setting a line."""
    metered = any("joules_per_sample" in row for row in rows)
    titles = ("texts/s", "p50 ms", "p95 ms", "peak MiB", *(["J/text"] if metered else []))
    table = new_table(("model", "dtype"), ("threads", "batch", "length", *titles))
    for row in rows:
        peak, joules = row["peak_bytes"], row.get("joules_per_sample")
        cells = [f"{row['samples_per_second']:.1f}", f"{row['latency_p50_ms']:.2f}", f"{row['latency_p95_ms']:.2f}"]
        cells.append("" if peak is None else f"{peak / 2**20:.0f}")
        cells += [] if not metered else ["" if joules is None else f"{joules:.4g}"]
        place = (str(row[name]) for name in ("threads", "batch", "length"))
        table.add_row(row["model"], row["dtype"], *place, *cells)
    print_table(table)


def print_comparisons(comparisons: list) -> None:
    """A table for people: ratios model / peer with their 10 % and 90 % quantiles."""
    from ..benchmarks.model import shown

    metered = any(each.energy for each in comparisons)
    titles = ("throughput", "latency", "memory", *(["energy"] if metered else []))
    table = new_table(("model", "peer", "dtype"), ("threads", "batch", "length", *titles))
    for each in comparisons:
        row = each.as_row()
        cells = [shown(each.throughput), shown(each.latency), "" if each.memory is None else f"{each.memory:.2f}"]
        cells += [shown(each.energy)] if metered else []
        place = (str(row[name]) for name in ("threads", "batch", "length"))
        table.add_row(each.model, each.peer, row["dtype"], *place, *cells)
    print_table(table)
