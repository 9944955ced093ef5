"""Compiling: what is kept between processes, what is trusted, and what happens where nothing can be kept."""

import ctypes
import inspect
import logging
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from inhibidistilbert.kernels.llvm import jit
from inhibidistilbert.kernels.llvm.builder import I64, PTR, Module
from inhibidistilbert.kernels.llvm.jit import CompilerUnavailable, Machine, cache_folder, entry
from inhibidistilbert.kernels.llvm.threads import run_on_threads
from tests.helpers.cpu_machines import MACHINES

pytestmark = pytest.mark.skipif(not MACHINES, reason="nothing can be compiled here")

HOST = MACHINES.get("host")
posix = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="file owners and modes of POSIX")


def toy_ir(machine: Machine, factor: int = 3, name: str = "multiply") -> str:
    """A function that replaces the number it is given by `factor` times it."""
    module = Module()
    with module.function(name, {"block": PTR}, exported=True) as (_, block):
        block.store(block.load(I64) * factor)
    return module.text()


class Toy:
    """A small library in a cache of its own."""

    def __init__(self, folder: Path, compilations: list) -> None:
        self.folder, self._compiled, self.generate = folder, compilations, toy_ir

    @property
    def compilations(self) -> int:
        return len(self._compiled)

    def triple(self, number: int = 7, machine: Machine | None = None, name: str = "multiply") -> int:
        """As a process that has compiled nothing yet."""
        jit._libraries.clear()
        address = entry.__wrapped__(name, self.generate, machine or HOST)
        block = ctypes.c_int64(number)
        run_on_threads(address, ctypes.addressof(block), 1)
        return block.value

    def files(self) -> list[Path]:
        return sorted(self.folder.iterdir())


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    compilations, compile_now = [], jit.object_code
    monkeypatch.setattr(jit, "object_code", lambda *given: compilations.append(given) or compile_now(*given))
    monkeypatch.setenv("INHIBIDISTILBERT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(jit, "_libraries", {})
    jit._announce.cache_clear()
    jit._warn_of.cache_clear()
    return Toy(tmp_path / "cache", compilations)


def test_the_second_process_compiles_nothing(toy: Toy, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, jit.__name__):
        assert [toy.triple(7), toy.triple(8), toy.triple(9)] == [21, 24, 27]
    assert toy.compilations == 1
    (message,) = [record.message for record in caplog.records]
    assert str(toy.folder) in message
    (file,) = toy.files()
    assert file.name.startswith("inhibitor-multiply-")
    assert file.suffix == ".o"


@posix
def test_only_the_user_can_read_or_write_the_cache(toy: Toy) -> None:
    toy.triple()
    assert stat.S_IMODE(toy.folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(file.stat().st_mode) for file in toy.files()] == [0o600]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:40],
        lambda content: content[:-1],
        lambda content: content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
        lambda content: b"x" + content[1:],
        lambda content: content + b"more",
    ],
    ids=["empty", "head-alone", "truncated", "one-bit", "another-format", "longer"],
)
def test_a_damaged_file_is_replaced(toy: Toy, damage) -> None:
    toy.triple()
    (file,) = toy.files()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert toy.triple() == 21
    assert toy.compilations == 2
    assert toy.files() == [file]
    assert file.read_bytes() == whole


def test_code_under_another_name_is_replaced(toy: Toy) -> None:
    """As one that copies or renames files leaves them: whole, but the code of something else."""
    toy.triple()
    (file,) = toy.files()
    toy.generate = partial(toy_ir, factor=5)
    toy.triple()
    (other,) = {*toy.files()} - {file}
    shutil.copy(file, other)
    assert [toy.triple(), toy.triple()] == [35, 35]
    assert toy.compilations == 3


@posix
@pytest.mark.parametrize(
    "put",
    [os.mkfifo, lambda file: file.symlink_to("/dev/zero"), lambda file: file.symlink_to(file.name)],
    ids=["pipe", "device", "link-to-itself"],
)
def test_what_is_no_file_is_replaced(toy: Toy, put: Callable[[Path], None]) -> None:
    toy.triple()
    (file,) = toy.files()
    file.unlink()
    put(file)
    assert [toy.triple(), toy.triple()] == [21, 21]
    assert toy.compilations == 2
    assert stat.S_ISREG(file.lstat().st_mode)


def test_a_folder_in_place_of_a_file_is_left_alone(toy: Toy) -> None:
    toy.triple()
    (file,) = toy.files()
    file.unlink()
    file.mkdir()
    assert toy.triple() == 21
    assert toy.files() == [file]


def test_temporary_files_of_killed_processes_go_in_time(toy: Toy) -> None:
    toy.folder.mkdir(mode=0o700)
    left, written_now, not_ours = (toy.folder / name for name in ("inhibitor-a-1.tmp", "inhibitor-a-2.tmp", "mine.tmp"))
    for file in (left, written_now, not_ours):
        file.touch()
    for file in (left, not_ours):
        os.utime(file, times=(0, time.time() - 2 * 24 * 3600))
    toy.triple()
    assert not left.exists()
    assert written_now.exists()
    assert not_ours.exists()


@posix
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777], ids=oct)
def test_a_folder_that_others_can_write_is_not_used(toy: Toy, mode: int, caplog: pytest.LogCaptureFixture) -> None:
    toy.triple()
    toy.folder.chmod(mode)
    assert [toy.triple(), toy.triple()] == [21, 21]
    assert toy.compilations == 3
    assert len([r for r in caplog.records if "somebody else" in r.message and str(toy.folder) in r.message]) == 1


@posix
def test_a_folder_of_somebody_else_is_not_used(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.triple()
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert toy.triple() == 21
    assert toy.compilations == 2


@posix
def test_a_file_that_others_can_write_is_not_run(toy: Toy) -> None:
    toy.triple()
    (file,) = toy.files()
    file.chmod(0o666)
    assert toy.triple() == 21
    assert toy.compilations == 2
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_without_a_place_to_write_it_compiles_every_time(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = toy.folder.parent / "file" / "cache"
    blocked.parent.write_text("no folder")
    monkeypatch.setenv("INHIBIDISTILBERT_CACHE_DIR", str(blocked))
    assert [toy.triple(), toy.triple()] == [21, 21]
    assert toy.compilations == 2
    assert not toy.folder.exists()


@posix
def test_a_folder_that_cannot_be_written_is_read(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.triple()

    def full(*arguments: object, **options: object) -> tuple[int, str]:
        raise PermissionError("read-only file system")

    monkeypatch.setattr(jit.tempfile, "mkstemp", full)
    assert toy.triple() == 21
    assert toy.compilations == 1
    toy.generate = partial(toy_ir, factor=5)
    assert toy.triple() == 35
    assert toy.compilations == 2
    assert len(toy.files()) == 1


def test_without_a_home_it_compiles_every_time(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for variable in ("INHIBIDISTILBERT_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert toy.triple() == 21
    assert toy.compilations == 1


def test_an_interrupted_write_leaves_no_file(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(jit.os, "replace", interrupted)
    assert toy.triple() == 21
    assert toy.files() == []


def test_another_code_processor_or_compiler_is_compiled_again(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.triple()
    toy.generate = partial(toy_ir, factor=5)
    assert toy.triple() == 35
    toy.generate = toy_ir
    toy.triple(machine=replace(HOST, cpu="generic"))
    toy.triple(machine=replace(HOST, features=HOST.features + ",-bmi"))
    toy.generate = partial(toy_ir, name="other")
    toy.triple(name="other")
    toy.generate = toy_ir
    monkeypatch.setattr("llvmlite.__version__", "0.0.0")
    toy.triple()
    assert toy.compilations == len(toy.files()) == 6


def test_one_process_compiles_once_for_all_its_threads(toy: Toy) -> None:
    with ThreadPoolExecutor(8) as pool:
        addresses = list(pool.map(lambda _: entry.__wrapped__("multiply", toy_ir, HOST), range(8)))
    assert len(set(addresses)) == 1
    assert toy.compilations == 1


def test_what_is_not_exported_is_not_found(toy: Toy) -> None:
    with pytest.raises(KeyError, match="quadruple"):
        entry.__wrapped__("quadruple", toy_ir, HOST)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="folders of Linux")
def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("INHIBIDISTILBERT_CACHE_DIR", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "inhibidistilbert" / "kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "inhibidistilbert" / "kernels"
    monkeypatch.setenv("INHIBIDISTILBERT_CACHE_DIR", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


def test_other_processors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    jit.host_machine.cache_clear()
    monkeypatch.setattr(jit.platform, "machine", lambda: "riscv64")
    with pytest.raises(CompilerUnavailable, match="no code for riscv64"):
        jit.host_machine()
    jit.host_machine.cache_clear()


@pytest.mark.parametrize("may", [True, False])
def test_tile_registers_are_asked_for(may: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux ends a process that uses them unasked."""
    features = SimpleNamespace(flatten=lambda: "+avx2,+fma,+amx-tile,+amx-int8")
    llvm = SimpleNamespace(
        get_process_triple=lambda: HOST.triple, get_host_cpu_features=lambda: features, get_host_cpu_name=lambda: "any"
    )
    monkeypatch.setattr(jit, "_llvm", lambda: llvm)
    monkeypatch.setattr(jit, "_may_use_tiles", lambda: may)
    found = jit.host_machine.__wrapped__()
    assert (found.has("amx-tile"), found.has("amx-int8")) == (may, may)
    assert found.has("avx2")


@pytest.mark.skipif(sys.platform != "linux", reason="a file of Linux")
def test_a_processor_without_tiles_is_not_asked_for_them() -> None:
    flags = Path("/proc/cpuinfo").read_text()
    assert jit._may_use_tiles() == ("amx_tile" in flags)


# Whole processes

LOGGED = """
import logging, sys, time
logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
"""
PACKAGE = """
import torch
from inhibidistilbert import inhibitor_attention
assert "llvmlite" not in sys.modules
tensors = torch.randn(3, 1, 2, 40, 16).unbind()
began = time.process_time()
got = inhibitor_attention(*tensors, backend="cpu")
print(time.process_time() - began)
want = inhibitor_attention(*tensors, backend="naive")
assert (got - want).norm() < 1e-5 * want.norm()
"""

# The operator's files alone, which start faster than the package with transformers.
ALONE = f"""
import importlib, sys, types
package = types.ModuleType("kernels_alone")
package.__path__ = [{str(Path(jit.__file__).parents[1])!r}]
sys.modules["kernels_alone"] = package
"""
# The compiler alone, which does without torch.
COMPILER = f"""{ALONE}
from kernels_alone.llvm.builder import I64, PTR, Module
from kernels_alone.llvm.jit import Machine, entry, host_machine
{inspect.getsource(toy_ir)}
assert entry("multiply", toy_ir, host_machine())
assert "torch" not in sys.modules
"""
KERNELS = f"""{ALONE}
import torch
attention = importlib.import_module("kernels_alone.attention").inhibitor_attention
tensors = torch.randn(3, 1, 2, 40, 16).unbind()
want = attention(*tensors, backend="naive")
assert (attention(*tensors, backend="cpu") - want).norm() < 1e-5 * want.norm()
"""


def start(script: str, folder: Path) -> subprocess.Popen:
    environment = os.environ | {"INHIBIDISTILBERT_CACHE_DIR": str(folder), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)


def outcome(process: subprocess.Popen) -> list[str]:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output.splitlines()


def libraries(folder: Path) -> list[str]:
    return sorted(file.name.rsplit("-", 1)[0] for file in folder.iterdir())


def test_first_and_second_process(tmp_path: Path) -> None:
    """Importing imports no compiler; the first call says once what it does, and the next process has nothing to do."""
    *messages, seconds = outcome(start(LOGGED + PACKAGE, tmp_path / "cache"))
    assert ["Compiling" in message for message in messages] == [True]
    assert float(seconds) < 15
    assert libraries(tmp_path / "cache") == ["inhibitor-backward", "inhibitor-forward"]
    times = [file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()]
    assert outcome(start(LOGGED + KERNELS, tmp_path / "cache")) == []
    assert [file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()] == times


def test_compilers_that_start_together(toy: Toy) -> None:
    for process in [start(COMPILER, toy.folder) for _ in range(2)]:
        outcome(process)
    assert libraries(toy.folder) == ["inhibitor-multiply"]
    assert (toy.triple(), toy.compilations) == (21, 0)


@pytest.mark.slow  # the compiler alone stays
def test_processes_that_start_together(tmp_path: Path) -> None:
    for process in [start(KERNELS, tmp_path / "cache") for _ in range(2)]:
        outcome(process)
    assert libraries(tmp_path / "cache") == ["inhibitor-backward", "inhibitor-forward"]
