"""Instruction counts of the kernels: what CI holds them to on machines without a GPU."""

import json
import sys
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import pytest

from inhibidistilbert import cli
from inhibidistilbert.benchmarks import static
from inhibidistilbert.benchmarks.static import TARGETS, Case, Figures, Variant, count, default_cases

pytest.importorskip("triton")

BOTH = (True, False)
# Instructions for one triple of query, key and channel, on sm_90.
LIMITS = {"_forward_kernel": 4.9, "_backward_query_kernel": 10.0, "_backward_key_kernel": 12.0, "_forward_half_kernel": 3.1}
PREPASS_LIMIT = 2.5
# What a gate, from the nearest key and divided by what passes, may take more than the published form, signed and centred.
GATE_MORE = {"_forward_kernel": 0.4, "_backward_query_kernel": 0.0, "_backward_key_kernel": 2.0}
GATE_PREPASS_MORE = 0.7

FULL = [
    Case("sm_90", head_dim, centered=centered, causal=causal) for head_dim, centered, causal in product((64, 32), BOTH, BOTH)
]
HALF = [replace(case, dtype="bf16", kernels=("_forward_half_kernel",)) for case in FULL]
OTHERS = [Case(target, 64, causal=True) for target in TARGETS if target != "sm_90"]
# Comparisons that leave a bit a lane fill the scalar registers of AMD first where little else is to be done.
OTHERS.append(Case("gfx942", 64, signed=False, centered=False, kernels=("_backward_query_kernel",)))
ODD = Case("sm_90", 48, kernels=("_forward_kernel",))
GATES = [Case("sm_90", 64, form="gate"), *(replace(case, form="gate") for case in OTHERS[:-1])]
ALL = [*FULL, *HALF, *OTHERS, ODD, *GATES]
# One of each kind: of every kernel, centered or not, and on either maker's GPUs.
FEW = [
    case
    for case in ALL
    if (case in (*FULL, *HALF) and case.head_dim == 64 and case.centered != case.causal)
    or case in (OTHERS[-1], ODD, GATES[0])
]


def variant(x: Case | Figures) -> tuple:
    return tuple((x.variant if isinstance(x, Figures) else Variant.from_dict(asdict(x))).as_dict().values())


@pytest.fixture(scope="module", params=[FEW, pytest.param(ALL, marks=pytest.mark.slow)], ids=["few", "all"])
def cases(request) -> list[Case]:
    return request.param


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def counted(cases, kept) -> list[Figures]:
    """In one process where there are few: each takes seconds to begin."""
    steps: list[int] = []
    figures = count(cases, keep=kept, jobs=1 if cases == FEW else None, progress=lambda: steps.append(1))
    assert len(steps) == len(cases)
    return figures


def test_results_come_in_the_order_of_the_cases(cases, counted):
    assert list(dict.fromkeys(map(variant, counted))) == list(map(variant, cases))


def test_results_of_several_processes_come_in_the_order_of_the_cases(monkeypatch):
    monkeypatch.setattr(static, "_count_in_process", lambda share, *_: [[case, case.target] for case in share])
    assert count(ALL, jobs=3) == [result for case in ALL for result in (case, case.target)]


def test_instructions_a_triple(cases, counted):
    fp32 = [x for x in counted if variant(x) in map(variant, FULL)]
    half = [x for x in counted if x.kernel == "_forward_half_kernel"]
    assert (len(fp32), len(half)) == (3 * len([x for x in cases if x in FULL]), len([x for x in cases if x in HALF]))
    costs = {(x.kernel, *variant(x)): x.instructions_per_triple for x in fp32 + half}
    assert not {key: cost for key, cost in costs.items() if cost > LIMITS[key[0]]}


def test_instructions_a_triple_of_the_prepass(cases, counted):
    forward = [x for x in counted if variant(x) in map(variant, FULL) and x.pass_name == "forward"]
    assert all((x.prepass_instructions_per_triple is not None) == x.variant.centered for x in forward)
    costs = {variant(x): x.prepass_instructions_per_triple for x in forward if x.variant.centered}
    assert len(costs) == len([x for x in cases if x in FULL and x.centered])
    assert not {key: cost for key, cost in costs.items() if cost > PREPASS_LIMIT}


def test_what_a_gate_takes_more(cases, counted):
    def place(x: Figures) -> tuple:
        return x.kernel, x.variant.target, x.variant.head_dim, x.variant.causal

    signed = {
        place(x): x for x in counted if x.variant.form is None and x.variant.signed and x.variant.centered
        if x.variant.dtype == "fp32"
    }  # fmt: skip
    gates = [x for x in counted if x.variant.form == "gate"]
    assert len(gates) == 3 * len([case for case in cases if case in GATES])
    more = {place(x): x.instructions_per_triple - signed[place(x)].instructions_per_triple for x in gates}
    assert not {place: cost for place, cost in more.items() if cost > GATE_MORE[place[0]]}
    prepass = [(x, signed[place(x)]) for x in gates if x.pass_name == "forward"]
    more = {place(x): x.prepass_instructions_per_triple - y.prepass_instructions_per_triple for x, y in prepass}
    assert not {place: cost for place, cost in more.items() if cost > GATE_PREPASS_MORE}


def test_no_count_is_below_what_the_arithmetic_takes(counted):
    # Subtract, add, clamp, add; two channels at once in the half kernel. Less were a count of something else.
    least = {"_forward_kernel": 4.0, "_forward_half_kernel": 2.0, "_backward_query_kernel": 6.0, "_backward_key_kernel": 7.0}
    sm_90 = [x for x in counted if x.variant.target == "sm_90"]  # sm_100 adds two float32 numbers in one instruction
    assert not {(x.kernel, *variant(x)) for x in sm_90 if x.instructions_per_triple < least[x.kernel]}


def test_fp32_loops_spill_nothing_on_any_target(cases, counted):
    fp32 = [x for x in counted if x.variant.dtype == "fp32"]
    assert {x.variant.target for x in fp32} == {case.target for case in cases}
    assert not {(x.kernel, *variant(x)): x.spills for x in fp32 if x.spills}


def test_the_half_kernel_is_counted_by_whole_chunks(counted):
    assert {x.keys_per_iteration for x in counted if x.kernel == "_forward_half_kernel"} == {8}
    assert {x.keys_per_iteration for x in counted if x.kernel != "_forward_half_kernel"} == {1}


def test_head_size_beyond_a_power_of_two_counts_real_channels_only(counted):
    padded = next(x for x in counted if variant(x) == variant(replace(ODD, head_dim=64)))
    odd = next(x for x in counted if variant(x) == variant(ODD))
    # The same tile for three quarters of the channels, and a few instructions for the mask.
    assert padded.instructions_per_triple * 4 / 3 <= odd.instructions_per_triple < padded.instructions_per_triple * 1.5


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fp32_loops_spill_nothing_in_any_variant():
    figures = count([case for case in default_cases() if case.dtype == "fp32"])
    assert not {(x.kernel, *variant(x)): x.spills for x in figures if x.spills}


def test_default_cases_cover_targets_types_and_variants():
    cases = default_cases()
    assert len(cases) == len(set(cases)) == 6 * 2 * (3 * 8 + 2)
    assert {case.kernels for case in cases if case.dtype != "fp32"} == {("_forward_kernel", "_forward_half_kernel")}


# The command.


@pytest.fixture
def run(monkeypatch, capsys):
    """`run(arguments)`: exit code, stdout and stderr of `inhibidistilbert benchmark kernels --static`, for one case."""
    monkeypatch.setattr(static, "default_cases", lambda targets, head_dims: [Case(targets[0], head_dims[0])])

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        words = ["inhibidistilbert", "benchmark", "kernels", "--static", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return run


def test_kept_files(counted, kept):
    files = {path.name for path in kept.glob("*-sm_90-d64-fp32-signed-centered.*")}
    assert {f"forward_kernel-sm_90-d64-fp32-signed-centered.{kind}" for kind in ("ptx", "cubin", "sass")} <= files
    assert len(files) == 9


def test_json_output(run, counted, monkeypatch, tmp_path: Path):
    def count_again(cases, keep, jobs, progress):
        assert (cases, keep, jobs) == ([Case()], tmp_path / "kept", None)
        return [x for x in counted if variant(x) == variant(Case())]

    monkeypatch.setattr(static, "count", count_again)
    code, out, err = run("--json", "--target", "sm_90", "--keep", tmp_path / "kept", "--output", tmp_path / "results")
    assert (code, err) == (0, "")
    forward, row, column = json.loads(out)
    assert [x["pass"] for x in (forward, row, column)] == ["forward", "row", "column"]
    assert set(forward) >= {
        *("kernel", "pass", "target", "head_dim", "dtype", "signed", "centered", "causal", "registers", "spills"),
        *("shared_bytes", "instructions_per_triple"),
    }
    written = json.loads((tmp_path / "results" / "kernels_static.json").read_text())
    assert written["results"] == [forward, row, column]
    assert written["machine"]["triton"]
    assert (tmp_path / "results" / "kernels_static.csv").read_text().count("\nforward") == 0
    assert len((tmp_path / "results" / "kernels_static.csv").read_text().split("kernel,pass")[1].splitlines()) == 4


def test_table_for_people(run, monkeypatch):
    figures = Figures("_forward_kernel", "forward", Variant("gfx942", 32), 246, 0, 31, 16384, 5.656, 2.688, 1)
    monkeypatch.setattr(static, "count", lambda *_: [figures])
    code, out, _ = run()
    assert code == 0
    (line,) = (line for line in out.splitlines() if "gfx942" in line)
    words = "forward_kernel gfx942 32 fp32 signed, centered 246 0 16384 5.66 2.69"
    assert line.split() == words.split()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "sm_70"], "--target must be one of sm_80, sm_86, sm_90, sm_100, sm_120, gfx942; got 'sm_70'."),
        (["--head-dim", "129"], "--head-dim must be from 1 to 128; got 129."),
        (["--jobs", "0"], "--jobs must be at least 1; got 0."),
    ],
)
def test_bad_arguments(run, arguments, message):
    assert run(*arguments) == (2, "", f"error: {message}\n")


def test_without_triton(run, monkeypatch):
    monkeypatch.setattr(static, "find_spec", lambda package: None)
    code, _, err = run()
    assert code == 2
    assert (
        err == "error: benchmark kernels needs the package triton, which is not installed: pip install triton, on Linux.\n"
    )


def test_a_worker_that_fails_says_why(monkeypatch, tmp_path):
    """Any program will do for it."""
    worker = tmp_path / "worker"
    worker.write_text("#!/bin/sh\nread request\necho \"KeyError: 'fp8'\" >&2\nexit 1\n")
    worker.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(worker))
    with pytest.raises(RuntimeError, match=r"compiling Case\(target='sm_90', head_dim=64, dtype='fp8'.*\nKeyError: 'fp8'"):
        count([Case(dtype="fp8")])


@pytest.mark.slow  # its message stays
def test_the_worker_fails_where_it_cannot_compile():
    with pytest.raises(
        RuntimeError, match=r"compiling Case\(target='sm_90', head_dim=64, dtype='fp8'.*\n[^$]*KeyError: 'fp8'"
    ):
        count([Case(dtype="fp8")])
