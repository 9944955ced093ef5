"""Two processes train what one does: the same batches in the same order, and so the same curve."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from transformers import DistilBertForMaskedLM

from inhibidistilbert import InhibiDistilBertForSequenceClassification
from inhibidistilbert.distillation.run import run_recipe
from tests.helpers.toy_recipe import STAGES, curve, three_stages
from tests.helpers.toy_task import write_distilbert

ROOT = Path(__file__).parents[2]
TIMES_OF_A_RUN = {"seconds", "epoch"}
# The command, in which the second process may not claim the folder, and comes late wherever data are made.
CAREFUL = """
import os, runpy, time
from inhibidistilbert.distillation import run
from inhibidistilbert.distillation.stages import STAGES

claim, second = run.claim, os.environ["RANK"] == "1"

def claim_alone(*args):
    assert not second, "claimed by the second process too"
    claim(*args)

def late(rows):
    def late_rows(*args):
        time.sleep(0.5 if second else 0)
        return rows(*args)

    return late_rows

run.claim = claim_alone
for kind in STAGES.values():
    kind.rows = late(kind.rows)
runpy.run_module("inhibidistilbert", run_name="__main__", alter_sys=True)
"""


# accelerate offers FSDP to processes with a GPU alone; what it then does works with gloo as well.
FSDP_ON_CPUS = """
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

init = AcceleratorState.__init__

def init_and_shard(self, *args, fsdp_plugin=None, **kwargs):
    init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.fsdp_plugin = fsdp_plugin
    if getattr(self, "fsdp_plugin", None) is not None:
        self.distributed_type = DistributedType.FSDP

AcceleratorState.__init__ = init_and_shard
"""
COMMAND = """
import runpy
runpy.run_module("inhibidistilbert", run_name="__main__", alter_sys=True)
"""
# The main process is killed when its second checkpoint is whole, the other with it.
KILLED = """
import os, signal
from inhibidistilbert.distillation import checkpoints

place = checkpoints.CheckpointTrainer._place

def place_and_kill(self, written, to):
    place(self, written, to)
    if to.name == "checkpoint-8":
        os.kill(os.getpid(), signal.SIGKILL)

checkpoints.CheckpointTrainer._place = place_and_kill
"""


def run_on_two(recipe, output: Path, tmp_path: Path, *program: str) -> subprocess.CompletedProcess:
    """The command under torchrun, on two processes with gloo."""
    with started(recipe, output, tmp_path, ["--standalone", "--nproc-per-node", "2"], program) as process:
        return finished(process)


def run_on_two_hosts(recipe, output: Path, tmp_path: Path, folders: Sequence[Path]) -> list[subprocess.CompletedProcess]:
    """One torchrun a host, which this machine plays both; `output` is relative to `folders`, where they are started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    host = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port]
    with ExitStack() as stack:
        hosts = [
            stack.enter_context(started(recipe, output, tmp_path, [*host, "--node-rank", str(rank)], cwd=folder))
            for rank, folder in enumerate(folders)
        ]
        return [finished(process) for process in hosts]


def started(recipe, output: Path, tmp_path: Path, launch: Sequence[str], program: Sequence[str] = (), cwd: Path = ROOT):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.as_json()))
    launcher = [sys.executable, "-m", "torch.distributed.run", *launch, *(program or ("-m", "inhibidistilbert"))]
    command = [*launcher, "distill", str(output), "--recipe", str(file), "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen) -> subprocess.CompletedProcess:
    try:
        stdout, stderr = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def test_two_processes_train_what_one_does(toy, tmp_path):
    """All three stages with every term of their losses; dropout 0, the same global batch and order."""
    teacher = write_distilbert(tmp_path / "teacher", initializer_range=0.3)
    masked = write_distilbert(tmp_path / "masked", DistilBertForMaskedLM, initializer_range=0.3)
    mlm = [f"pretrain.teacher={masked}", "pretrain.mlm_weight=1", "pretrain.soft_mlm_weight=1"]
    changes = [*mlm, *(f"{stage}.{change}" for stage in STAGES for change in ("dropout=0", "max_steps=4"))]
    recipe = three_stages(toy, teacher, *changes, "trainer.logging_steps=1")
    run_recipe(recipe, tmp_path / "one")
    program = tmp_path / "careful.py"
    program.write_text(CAREFUL)
    done = run_on_two(recipe, tmp_path / "two", tmp_path, str(program))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1  # the log, once
    same_curves(tmp_path / "one", tmp_path / "two")
    assert InhibiDistilBertForSequenceClassification.from_pretrained(tmp_path / "two")
    assert '"machine": "' in done.stdout
    assert "2 processes" in done.stdout


@pytest.mark.slow  # two processes of one host, and hosts that share no folder, stay
def test_two_hosts_train_what_one_process_does(toy, tmp_path):
    """Each has a first process of its own: only one of them may write."""
    teacher = write_distilbert(tmp_path / "teacher", initializer_range=0.3)
    recipe = three_stages(toy, teacher, *(f"{stage}.dropout=0" for stage in STAGES))
    run_recipe(recipe, tmp_path / "one")
    hosts = run_on_two_hosts(recipe, Path("two"), tmp_path, [tmp_path, tmp_path])
    assert [host.returncode for host in hosts] == [0, 0], hosts[0].stderr + hosts[1].stderr
    assert [host.stdout.count("\n") for host in hosts] == [1, 0]
    assert "2 processes" in hosts[0].stdout
    same_curves(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_hosts_that_share_no_folder_are_told_so(toy, tmp_path):
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    recipe = three_stages(toy, write_distilbert(tmp_path / "teacher"))
    hosts = run_on_two_hosts(recipe, Path("out"), tmp_path, folders)
    assert all(host.returncode for host in hosts)
    message = "error: OUTPUT_DIR: 'out.work' is not one folder to all hosts: process 1 does not see what the main"
    assert message in hosts[0].stderr
    # The record alone, over which another command may go.
    assert [path.name for path in tmp_path.glob("first/out.work/*")] == ["recipe.json"]


def same_curves(first: Path, second: Path) -> None:
    one, two = curve(first), curve(second)
    assert [(record["stage"], record["step"]) for record in two] == [(record["stage"], record["step"]) for record in one]
    for record, other in zip(one, two, strict=True):
        for name in record.keys() - TIMES_OF_A_RUN - {"stage"}:
            assert other[name] == pytest.approx(record[name], abs=1e-4, rel=1e-4), (record["stage"], record["step"], name)


def trains_what_one_process_does(toy: Path, tmp_path: Path, options: list[str], state_file: str, before: str = "") -> None:
    """With each process holding a part, all three stages have the curve and the scores of one; killed and resumed.

    state_file: what its checkpoints hold. before: a program for each process, before the command.
    """
    teacher = write_distilbert(tmp_path / "teacher", initializer_range=0.3)
    changes = [f"{stage}.dropout=0" for stage in STAGES]
    alone, sharded = tmp_path / "alone", tmp_path / "sharded"
    run_recipe(three_stages(toy, teacher, *changes), alone)
    recipe = three_stages(toy, teacher, *changes, *options)
    program = tmp_path / "program.py"
    program.write_text(before + KILLED + COMMAND)
    killed = run_on_two(recipe, sharded, tmp_path, str(program))
    assert "exitcode  : -9" in killed.stderr
    assert list((tmp_path / "sharded.work").glob(f"*/checkpoint-8/{state_file}"))
    program.write_text(before + COMMAND)
    done = run_on_two(recipe, sharded, tmp_path, str(program))
    assert done.returncode == 0, done.stderr
    same_curves(alone, sharded)
    tests = [json.loads((folder / "distillation.json").read_text())["tests"] for folder in (alone, sharded)]
    assert tests[0] == tests[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saved", "state_file"), [("FULL_STATE_DICT", "optimizer.bin"), ("SHARDED_STATE_DICT", "optimizer_0/__1_0.distcp")]
)
def test_fsdp_trains_what_one_process_does(toy, tmp_path, saved, state_file):
    layers = "transformer_layer_cls_to_wrap: [TransformerBlock]"
    options = ["trainer.fsdp=true", f"trainer.fsdp_config={{version: 2, state_dict_type: {saved}, {layers}}}"]
    trains_what_one_process_does(toy, tmp_path, options, state_file, FSDP_ON_CPUS)


def write_deepspeed(folder: Path, **optimization) -> Path:
    automatic = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    settings = dict.fromkeys(automatic, "auto") | {"zero_optimization": optimization, "zero_allow_untested_optimizer": True}
    file = folder / "deepspeed.json"
    file.write_text(json.dumps(settings))
    return file


@pytest.mark.parametrize("zero", [2, 3])
def test_deepspeed_trains_what_one_process_does(toy, tmp_path, monkeypatch, zero):
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    file = write_deepspeed(tmp_path, stage=zero, stage3_gather_16bit_weights_on_model_save=True)
    trains_what_one_process_does(toy, tmp_path, [f"trainer.deepspeed={file}"], "global_step8/*optim_states.pt")


def test_deepspeed_stage_3_must_gather_the_student(toy, tmp_path, monkeypatch):
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    teacher = write_distilbert(tmp_path / "teacher")
    recipe = three_stages(toy, teacher, f"trainer.deepspeed={write_deepspeed(tmp_path, stage=3)}")
    done = run_on_two(recipe, tmp_path / "out", tmp_path)
    assert done.returncode != 0
    assert "error: trainer: DeepSpeed's zero_optimization.stage3_gather_16bit_weights_on_model_save" in done.stderr


@pytest.mark.slow
def test_bad_input_ends_both_with_a_clear_message(toy, tmp_path):
    recipe = three_stages(toy, tmp_path / "no" / "teacher")
    done = run_on_two(recipe, tmp_path / "two", tmp_path)
    assert done.returncode != 0
    assert "error: --teacher: " in done.stderr
    assert 'Traceback (most recent call last):\n  File "' + str(ROOT) not in done.stderr
