"""A model beside its peers: who takes part, the arithmetic of its figures, and what the command writes."""

import csv
import json
import os
import random
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import DistilBertForSequenceClassification

from inhibidistilbert import InhibiDistilBertForSequenceClassification, cli, quantize
from inhibidistilbert.benchmarks import energy, engines, model
from inhibidistilbert.benchmarks.model import Protocol, compare, run
from inhibidistilbert.benchmarks.peers import Checkpoint, ModelPeer, build, weight_bytes, write_graph
from inhibidistilbert.benchmarks.timing import Refused, interleave, torch_threads
from inhibidistilbert.commands.benchmark_model import read_texts
from inhibidistilbert.support import packages
from inhibidistilbert.support.benchmark_results import Setting, Tokens
from inhibidistilbert.support.errors import UserError
from inhibidistilbert.support.machine import cpu_kind
from inhibidistilbert.support.memory import peak_memory
from tests.helpers.tiny_sentiment import write_tiny_checkpoint

CPU = torch.device("cpu")
IDS = torch.arange(1, 15).repeat(2, 1)
TABLE = f"model_cpu_{cpu_kind()}"
COLUMNS = "model,peer,dtype,threads,batch,length,throughput_ratio,latency_ratio,memory_ratio"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def checkpoint(folder) -> Checkpoint:
    return Checkpoint.load(str(folder))


def peer(checkpoint: Checkpoint, name: str, dtype: str = "float32"):
    return build(checkpoint, ModelPeer(name), dtype, CPU)


# Who takes part.


def test_the_checkpoint_has_the_weights_of_its_folder(checkpoint, folder):
    expected = InhibiDistilBertForSequenceClassification.from_pretrained(folder)
    found = peer(checkpoint, "inhibitor")
    torch.testing.assert_close(found(IDS).logits, expected(IDS).logits)


def test_the_authors_formulation_is_the_same_model_by_other_operations(checkpoint, monkeypatch):
    found, expected = peer(checkpoint, "authors_cdist"), peer(checkpoint, "inhibitor")
    torch.testing.assert_close(found(IDS).logits, expected(IDS).logits, rtol=1e-3, atol=1e-4)
    calls = []
    distances = torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda *args, **options: calls.append(1) or distances(*args, **options))
    expected(IDS)
    assert not calls
    found(IDS)
    assert len(calls) == 3 * checkpoint.config.n_layers


@pytest.mark.parametrize("name", ["softmax_sdpa", "softmax_eager"])
def test_a_softmax_peer_is_distilbert_of_the_same_size(checkpoint, name):
    found = peer(checkpoint, name)
    assert type(found) is DistilBertForSequenceClassification
    assert found.config._attn_implementation == name.removeprefix("softmax_")
    scalars = 3 * checkpoint.config.n_layers
    assert found.num_parameters() == peer(checkpoint, "inhibitor").num_parameters() - scalars


def test_half_precision_and_int8_forms(checkpoint):
    assert peer(checkpoint, "softmax_sdpa", "bfloat16").dtype == torch.bfloat16
    exact, int8 = peer(checkpoint, "inhibitor"), peer(checkpoint, "inhibitor", "int8")
    assert int8.config.quantized
    assert int8.config.int8_weights
    linear = torch.ao.nn.quantized.dynamic.Linear
    layer = peer(checkpoint, "softmax_sdpa", "int8").distilbert.transformer.layer[0]
    assert type(layer.attention.q_lin) is type(layer.ffn.lin1) is linear
    assert weight_bytes(int8) < weight_bytes(exact)
    # Packed weights are counted: a byte each, and their biases in float32.
    softmax = peer(checkpoint, "softmax_sdpa", "int8")
    packed = [module for module in softmax.modules() if isinstance(module, linear)]
    saved = sum(3 * module.in_features * module.out_features for module in packed)
    assert weight_bytes(softmax) == weight_bytes(peer(checkpoint, "softmax_sdpa")) - saved


def model_inputs(rows: int, tokens: int) -> dict[str, torch.Tensor]:
    mask = torch.ones(rows, tokens, dtype=torch.int64)
    mask[0, tokens // 2 + 1 :] = 0
    return {"input_ids": torch.arange(1, 1 + rows * tokens).reshape(rows, tokens), "attention_mask": mask}


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        ("onnxruntime", "float32", 1e-5),
        ("onnxruntime", "int8", 0.1),
        ("openvino", "float32", 1e-5),
        ("openvino", "bfloat16", 0.01),
        ("openvino", "int8", 0.1),
    ],
)
def test_an_engine_runs_softmax_distilbert(tmp_path, name, dtype, tolerance):
    checkpoint = Checkpoint.load("tiny")
    for package in engines.ENGINES[name].packages:
        pytest.importorskip(package)
    try:
        graph = write_graph(checkpoint, ModelPeer(name), dtype, CPU, tmp_path)
    except Refused as refusal:
        pytest.skip(str(refusal))  # OpenVINO's bfloat16 on a processor without it
    session = graph.start(model_inputs(2, 7))
    softmax = peer(checkpoint, "softmax_sdpa")
    assert session.weight_bytes < weight_bytes(softmax) * (1 if dtype == "int8" else 1.3)
    for rows, tokens in ((2, 7), (1, 14), (3, 5)):
        inputs = model_inputs(rows, tokens)
        got, want = torch.from_numpy(session(**inputs)[0].copy()), softmax(**inputs)[0]
        error = (got - want).norm() / want.norm()
        assert error < tolerance
        assert dtype == "float32" or error > 1e-6  # it is not float32 by another name


def test_an_engine_has_the_threads_of_torch(checkpoint, tmp_path, monkeypatch):
    threads = []
    engine = engines.OnnxRuntime()
    monkeypatch.setattr(engine, "start", lambda file, dtype, number: threads.append(number) or (lambda arrays: arrays))
    graph = engines.Graph(engine, tmp_path / "a file", "float32", 7)
    for number in (1, 2):
        with torch_threads(number):
            assert graph.start(model_inputs(2, 3)).weight_bytes == 7
    assert threads == [1, 2]


def test_what_an_engine_does_not_have_is_refused(checkpoint, tmp_path):
    pytest.importorskip("onnxruntime")
    for dtype in ("bfloat16", "float16"):
        with pytest.raises(Refused, match=f"ONNX Runtime has no {dtype} form"):
            write_graph(checkpoint, ModelPeer("onnxruntime"), dtype, CPU, tmp_path)
    with pytest.raises(Refused, match="processors alone"):
        write_graph(checkpoint, ModelPeer("onnxruntime"), "float32", torch.device("meta"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_is_not_installed_is_refused_with_what_installs_it(monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "nncf" else True)
    with pytest.raises(UserError, match=r"^--against openvino needs nncf: pip install openvino nncf$"):
        ModelPeer.parse("openvino@int8")


def test_an_engine_beside_the_checkpoint(checkpoint, monkeypatch):
    pytest.importorskip("onnxruntime")
    folders = []
    monkeypatch.setattr(model, "write_graph", lambda *x: folders.append(x[-1]) or write_graph(*x))
    measurements, refusals = run(checkpoint, [ModelPeer("onnxruntime")], protocol(dtypes=["float32", "int8"]), CPU)
    measured = {(x.name, x.setting.dtype) for x in measurements}
    assert measured == set(product(["inhibitor", "onnxruntime"], ["float32", "int8"]))
    assert refusals == {}
    assert len(set(folders)) == 1  # int8 is made of the float32 file
    assert not folders[0].exists()


def test_torch_compile_is_softmax_distilbert_in_one_graph(checkpoint, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled.append((self, options)))
    compiled: list = []
    found = peer(checkpoint, "torch_compile")
    assert compiled == [(found, {"fullgraph": True})]
    torch.testing.assert_close(found(IDS).logits, peer(checkpoint, "softmax_sdpa")(IDS).logits)
    with pytest.raises(Refused, match=r"torch\.compile makes no int8 form"):
        peer(checkpoint, "torch_compile", "int8")


@pytest.mark.slow  # it compiles
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a compiler")
def test_torch_compile_compiles(checkpoint):
    measurements, refusals = run(checkpoint, [ModelPeer("torch_compile")], protocol(), CPU)
    assert [x.name for x in measurements] == ["inhibitor", "torch_compile"]
    assert refusals == {}


def test_a_folder_as_a_peer(checkpoint, tmp_path):
    torch.manual_seed(1)
    peer(checkpoint, "softmax_sdpa").save_pretrained(tmp_path / "peer")
    assert (
        type(build(checkpoint, ModelPeer.parse(str(tmp_path / "peer")), "float32", CPU))
        is DistilBertForSequenceClassification
    )


def test_an_int8_checkpoint_takes_part_in_int8_alone(tmp_path, folder):
    quantize(InhibiDistilBertForSequenceClassification.from_pretrained(folder)).save_pretrained(tmp_path)
    checkpoint = Checkpoint.load(str(tmp_path))
    assert peer(checkpoint, "inhibitor", "int8").config.int8_weights
    with pytest.raises(Refused, match="int8 weights"):
        peer(checkpoint, "inhibitor")
    with pytest.raises(UserError, match="--dtype float32: the checkpoint has int8 weights"):
        run(checkpoint, [], protocol(), CPU)


def test_int8_forms_are_for_processors(checkpoint):
    with pytest.raises(Refused, match="processors"):
        build(checkpoint, ModelPeer("softmax_sdpa"), "int8", torch.device("cuda"))


# The figures.


class Steps:
    """A clock that moves while a model computes: by the seconds that `seconds(name)` gives."""

    def __init__(self, monkeypatch, seconds):
        self.now = 0.0

        def batch(running) -> int:
            self.now += seconds(running.name)
            return len(next(running.inputs)["input_ids"])

        monkeypatch.setattr(model._Running, "__call__", batch)

    def __call__(self) -> float:
        return self.now


class FakeMeter:
    """Gives out a fixed number of joules for each call; counts the calls."""

    source = "a fake"

    def __init__(self, joules: float):
        self.given, self.calls = joules, 0

    def joules(self, work) -> float:
        work()
        self.calls += 1
        return self.given


def protocol(**changes) -> Protocol:
    return Protocol(**{"batches": [2], "lengths": [8], "samples": 6, "repetitions": 3} | changes)


SOFTMAX = [ModelPeer("softmax_sdpa")]


def test_throughput_and_latency(checkpoint, monkeypatch):
    clock = Steps(monkeypatch, {"inhibitor": 0.5, "softmax_sdpa": 0.25}.get)
    measurements, refusals = run(checkpoint, SOFTMAX, protocol(), CPU, clock=clock)
    assert refusals == {}
    row = measurements[0].row().as_dict()
    # Three measurements of six texts, two in a batch.
    assert (row["rounds"], row["samples"]) == (9, 18)
    assert row["samples_per_second"] == 4.0
    assert row["latency_p50_ms"] == row["latency_p95_ms"] == 500.0
    (ratio,) = compare(measurements)
    assert (ratio.throughput.median, ratio.latency.median) == (0.5, 2.0)
    assert ratio.memory == pytest.approx(measurements[0].peak_bytes / measurements[1].peak_bytes)
    assert not any("joules" in name or "energy" in name for name in row | ratio.as_dict())


def test_latency_quantiles(checkpoint, monkeypatch):
    turns = iter([0.0, 0.0, 0.0, *range(1, 101)])
    clock = Steps(monkeypatch, lambda name: float(next(turns)))
    measurements, _ = run(checkpoint, [], protocol(batches=[1], samples=100, repetitions=1), CPU, clock=clock)
    row = measurements[0].row().as_dict()
    assert row["latency_p50_ms"] == pytest.approx(50_500)
    assert row["latency_p95_ms"] == pytest.approx(95_050)


def test_energy_by_an_injected_meter(checkpoint, monkeypatch):
    # Half a second and more in a window: 4 batches of the faster one, for both.
    clock = Steps(monkeypatch, {"inhibitor": 0.25, "softmax_sdpa": 0.125}.get)
    meter = FakeMeter(joules=40.0)
    measurements, _ = run(checkpoint, SOFTMAX, protocol(samples=20), CPU, clock=clock, meter=meter)
    assert {window.samples for x in measurements for window in x.windows} == {2 * 4}
    assert meter.calls == sum(len(x.windows) for x in measurements) == 2 * 8
    assert [x.row().as_dict()["joules_per_sample"] for x in measurements] == [5.0, 5.0]
    (ratio,) = compare(measurements)
    assert ratio.as_dict()["energy_ratio"] == 1.0
    assert ratio.throughput.median == 0.5


def test_energy_ratio_is_the_median_of_the_rounds():
    setting = Setting("float32", 1, Tokens(2, 8))

    def measured(name, joules):
        return model.Measurement(setting, name, [model.Window(2, [1.0], j) for j in joules], 100, 120)

    mine, other = measured("inhibitor", [2.0, 6.0, None, 30.0]), measured("softmax_sdpa", [2.0, 3.0, 1.0, 3.0])
    assert mine.beside(other).energy.median == 2.0
    assert mine.row().as_dict()["joules_per_sample"] == 3.0
    assert mine.peak_bytes == 120


def test_a_counter_that_does_not_move_is_no_figure(checkpoint, monkeypatch):
    clock = Steps(monkeypatch, lambda name: 0.1)
    measurements, _ = run(checkpoint, SOFTMAX, protocol(), CPU, clock=clock, meter=FakeMeter(joules=0.0))
    assert all(window.joules is None for x in measurements for window in x.windows)
    assert "joules_per_sample" not in measurements[0].row().as_dict()
    assert "energy_ratio" not in compare(measurements)[0].as_dict()


@pytest.mark.parametrize(
    ("measured", "joules"),
    [
        (SimpleNamespace(gpu_energy={0: 12.5}, cpu_energy={}, dram_energy=None), 12.5),
        (SimpleNamespace(gpu_energy={}, cpu_energy={0: 3.0, 1: 4.0}, dram_energy={0: 0.5}), 7.5),
    ],
    ids=["gpu", "packages"],
)
def test_energy_of_a_zeus_window(measured, joules):
    events = []
    monitor = SimpleNamespace(
        begin_window=lambda key, restart: events.append("begin"), end_window=lambda key: events.append("end") or measured
    )
    meter = energy.ZeusMeter(monitor, "Zeus")
    assert meter.joules(lambda: events.append("work")) == joules
    assert events == ["begin", "work", "end"]


def test_without_zeus_there_is_no_meter(monkeypatch):
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)
    with pytest.raises(energy.NoMeter, match=r"pip install .zeus>="):
        energy.find_meter(CPU)


def test_a_repeated_benchmark_agrees_within_its_interval(checkpoint, monkeypatch):
    noise = random.Random(0)
    clock = Steps(monkeypatch, lambda name: (1.3 if name == "inhibitor" else 1.0) * noise.lognormvariate(0, 0.1))

    def ratio():
        measurements, _ = run(checkpoint, SOFTMAX, protocol(samples=20), CPU, clock=clock)
        return compare(measurements)[0].throughput

    runs = [ratio() for _ in range(5)]
    assert all(one.low < other.median < one.high for one in runs for other in runs)
    # As wide as the noise, no wider: a ratio of two such times varies by 14 %.
    assert all(0.97 * one.median > one.low > 0.7 * one.median for one in runs)


@pytest.mark.slow  # the same on a clock that the test sets stays
def test_a_repeated_benchmark_on_this_machine_agrees_within_its_interval(checkpoint):
    def ratio():
        measurements, _ = run(checkpoint, [ModelPeer("authors_cdist")], protocol(batches=[1], samples=60), CPU)
        return compare(measurements)[0].throughput

    one, other = ratio(), ratio()
    assert one.low <= other.high
    assert other.low <= one.high


def test_a_comparison_ends_after_its_time(checkpoint, monkeypatch):
    times = iter(range(0, 1000, 4))
    monkeypatch.setattr(model, "interleave", lambda *a, **k: interleave(*a, **k, clock=lambda: next(times)))
    measurements, _ = run(checkpoint, [], protocol(samples=1000, seconds=40), CPU)
    # Three for the repetitions, then one every 4 s, at the last check 36 s have passed.
    assert measurements[0].row().as_dict()["rounds"] == 3 + 9
    measurements, _ = run(checkpoint, [], protocol(samples=1000, seconds=1), CPU)
    assert measurements[0].row().as_dict()["rounds"] == 3


def test_shapes_in_place_of_all_batches_at_all_lengths():
    settings = Protocol(shapes=[Tokens(1, 32), Tokens(4, 512)], threads=[1, 2]).settings
    assert [(x.threads, str(x.tokens)) for x in settings] == [(1, "1×32"), (1, "4×512"), (2, "1×32"), (2, "4×512")]


def test_batches_of_many_tokens_are_left_out():
    settings = Protocol(batches=[1, 8], lengths=[128, 512], max_tokens=1024).settings
    assert [(x.tokens.length, x.tokens.batch) for x in settings] == [(128, 1), (128, 8), (512, 1)]


def test_who_runs_out_of_memory_is_left_out(checkpoint, monkeypatch):
    batch = model._Running.__call__

    def failing(running):
        if running.name == "softmax_sdpa":
            raise torch.OutOfMemoryError
        return batch(running)

    monkeypatch.setattr(model._Running, "__call__", failing)
    measurements, refusals = run(checkpoint, SOFTMAX, protocol(), CPU)
    assert [x.name for x in measurements] == ["inhibitor"]
    assert refusals == {"softmax_sdpa (float32, batch 2, length 8)": "OutOfMemoryError"}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of the resident set is read on Linux")
def test_peak_memory_is_what_a_call_holds_at_most():
    def work():
        first = torch.ones(24 << 18)  # 24 MiB
        second = first + 1
        del first
        return second.sum()

    found = peak_memory(CPU, work)
    if found is None:
        pytest.skip("this system does not let the peak start anew")
    assert found / 2**20 == pytest.approx(48, abs=4)


def test_real_texts_are_cut_and_padded(checkpoint):
    make = model.text_inputs(checkpoint.tokenizer(), ["a good film", "the plot was not very good but the film was funny"])
    first = make(checkpoint, Setting("float32", 1, Tokens(2, 8)), CPU)[0]
    assert first["input_ids"].shape == (2, 8)
    assert first["attention_mask"].sum(1).tolist() == [5, 8]


def test_every_peer_gets_the_same_tokens(checkpoint):
    setting = Setting("float32", 1, Tokens(2, 8))
    one, other = (model.random_inputs(checkpoint, setting, CPU) for _ in range(2))
    assert all(torch.equal(x["input_ids"], y["input_ids"]) for x, y in zip(one, other, strict=True))
    assert not torch.equal(one[0]["input_ids"], one[1]["input_ids"])


# The command.


@pytest.fixture
def command(monkeypatch, capsys):
    """`command(arguments)`: exit code, stdout and stderr of `inhibidistilbert benchmark model`."""

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["inhibidistilbert", "benchmark", "model", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return command


SMALL = ("--batch", 1, "--length", 8, "--length", 16, "--samples", 2, "--repetitions", 2, "--threads", 1, "--device", "cpu")


@pytest.fixture
def no_meter(monkeypatch):
    def find(device):
        raise energy.NoMeter("there is none in this test")

    monkeypatch.setattr(energy, "find_meter", find)


def test_files_of_a_run(command, folder, tmp_path, no_meter):
    code, out, err = command(folder, *SMALL, "--json", "--output", tmp_path, "--dtype", "float32", "--dtype", "int8")
    assert code == 0
    assert "note: energy is not measured: there is none in this test." in err
    printed = json.loads(out)
    lines = (tmp_path / f"{TABLE}.csv").read_text().splitlines()
    assert lines[0] == COLUMNS
    rows = list(csv.DictReader(lines))
    # Three peers of the inhibitor and two of the authors' formulation, two lengths, two dtypes.
    assert len(rows) == len(printed["ratios"]) == 5 * 2 * 2
    assert {row["model"] for row in rows} == {"inhibitor", "authors_cdist"}
    content = json.loads((tmp_path / f"{TABLE}.json").read_text())
    assert content["results"] == printed["results"]
    assert content["ratios"] == printed["ratios"]
    assert {"command", "cpu", "torch", "transformers", "seed", "samples", "energy"} <= content["machine"].keys()
    assert (tmp_path / f"{TABLE}.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / f"{TABLE}.md").read_text().splitlines()) == len(rows) + 2
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".json", ".md", ".png"]


def test_energy_is_a_column_where_there_is_a_meter(command, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "find_meter", lambda device: FakeMeter(1.0))
    monkeypatch.setattr(model, "METERED_SECONDS", 0.001)
    code, out, _ = command(folder, *SMALL, "--against", "softmax_sdpa", "--output", tmp_path)
    assert code == 0
    assert "J/text" in out
    lines = (tmp_path / f"{TABLE}.csv").read_text().splitlines()
    assert lines[0] == COLUMNS + ",energy_ratio"
    assert {row["energy_ratio"] for row in csv.DictReader(lines)} == {"1.0"}
    assert (tmp_path / f"{TABLE}_energy.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / f"{TABLE}.json").read_text())["machine"]["energy"] == "a fake"


def test_texts_for_a_size_go_through_the_tokenizer_of_the_shipped_checkpoint(command, tmp_path, no_meter):
    file = tmp_path / "texts.txt"
    file.write_text("A good film.\nThe plot was not very good, but the film was funny.\n")
    code, out, _ = command("tiny", *SMALL, "--against", "softmax_sdpa", "--text-file", file, "--json")
    assert code == 0
    assert len(json.loads(out)["ratios"]) == 2
    tokenizer, config = Checkpoint.load("base").tokenizer(), Checkpoint.load("base").config
    assert len(tokenizer) <= config.vocab_size
    assert tokenizer.decode(tokenizer("A good film.")["input_ids"], skip_special_tokens=True) == "a good film."


def test_a_size_with_random_weights_and_a_peer_of_another_dtype(command, no_meter):
    code, out, _ = command("tiny", *SMALL, "--dtype", "int8", "--against", "softmax_sdpa@float32")
    assert code == 0
    assert "softmax_sdpa@float32" in out


@pytest.mark.slow  # `make check` sees what is imported
def test_neither_datasets_nor_evaluate_is_needed(folder):
    program = "import sys; sys.modules.update(datasets=None, evaluate=None); from inhibidistilbert import cli; cli.main()"
    arguments = ["benchmark", "model", str(folder), *map(str, SMALL), "--against", "softmax_sdpa", "--json"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["ratios"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "CHECKPOINT 'nowhere' is neither a folder with a config.json nor one of base, small, tiny."),
        (
            ["tiny", "--against", "linear"],
            "--against must be softmax_sdpa, softmax_eager, torch_compile, openvino, onnxruntime, ",
        ),
        (["tiny", "--against", "inhibitor"], "--against inhibitor needs a dtype, such as inhibitor@float32"),
        (["tiny", "--dtype", "float8"], "--dtype must be one of float32, bfloat16, float16, int8; got 'float8'."),
        (["tiny", "--length", 513], "--length must be at most 512, the checkpoint's positions; got 513."),
        (
            ["tiny", "--batch", 8, "--max-tokens", 1023],
            "--max-tokens 1023 leaves no batch; it must be at least batch times ",
        ),
        (["tiny", "--batch", 0], "--batch must be at least 1; got 0."),
        (
            ["tiny", "--threads", 1_000_000],
            f"--threads must be at most {os.cpu_count()} on this machine; got 1000000.",
        ),
        (["tiny", "--samples", 0], "--samples must be at least 1; got 0."),
        (["tiny", "--seconds", 0], "--seconds must be above 0; got 0.0."),
        (["tiny", "--shape", "8x"], "--shape must be texts x tokens, such as 8x128; got '8x'."),
        (["tiny", "--shape", "1x513"], "--length must be at most 512, the checkpoint's positions; got 513."),
        (["tiny", "--shape", "8x128", "--batch", 1], "--shape takes the place of --batch and --length; give one or the "),
        (["tiny", "--device", "abacus"], "device 'abacus' is not available here"),
    ],
)
def test_bad_arguments_write_nothing(command, tmp_path, arguments, message):
    code, out, err = command(*arguments, "--output", tmp_path / "out")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_line_of_a_text_file_is_a_text(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_bytes("\ufeffa\x0cb\u2028c\r\n\n \nd\re".encode())
    assert read_texts(file) == ["a\x0cb\u2028c", "d\re"]


@pytest.mark.parametrize(("content", "part"), [(None, "cannot be read"), ("\n \n", "holds no text"), ("\xff", "UTF-8")])
def test_a_text_file_that_holds_no_texts(command, folder, tmp_path, content, part):
    file = tmp_path / "texts.txt"
    if content is not None:
        file.write_bytes(content.encode("latin-1"))
    code, _, err = command(folder, *SMALL, "--text-file", file)
    assert code == 2
    assert part in err


def test_another_kind_of_model_is_a_peer_only(command, folder, tmp_path, checkpoint):
    peer(checkpoint, "softmax_sdpa").save_pretrained(tmp_path)
    code, _, err = command(tmp_path, *SMALL)
    assert code == 2
    assert "must hold model_type 'inhibidistilbert', got 'distilbert'; give it with --against." in err
