"""Compiles LLVM IR for the processor at hand with llvmlite, and keeps the object code in a folder of the user.

A file of kernels brings a function from a `Machine` to the text of its IR; `entry` gives the address of what it exports.
Nothing here is done before the first call: who does not need a compiler does not wait for one.
"""

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_MAGIC = b"inhibitor object 2\n"
_MOST_BYTES = 1 << 26  # of a file that is read: a library has less than a hundredth of that
_ABANDONED = 24 * 3600  # seconds, after which no process writes a temporary file any more


class CompilerUnavailable(RuntimeError):
    """Nothing can be compiled here; the message says why, and what would help."""


@dataclass(frozen=True)
class Machine:
    """A processor that code is generated for.

    triple, cpu, features: as LLVM names them; features such as `"+avx2,-avx512f"`.
    lanes: float32 numbers in a vector register.
    registers: vector registers.
    """

    triple: str
    cpu: str
    features: str
    lanes: int
    registers: int

    def has(self, feature: str) -> bool:
        return f"+{feature}" in self.features.split(",")


def vector_shape(triple: str, features: str) -> tuple[int, int]:
    """Lanes of float32 and number of the vector registers to use."""
    available = set(features.split(","))
    if triple.startswith(("aarch64", "arm64")):
        return 4, 32
    if {"+avx512f", "+avx512bw", "+avx512dq", "+avx512vl"} <= available:
        return 16, 32
    if {"+avx2", "+fma"} <= available:
        return 8, 16
    return 4, 16


@cache
def _llvm() -> Any:
    """llvmlite's binding, ready to generate code for this processor."""
    try:
        import llvmlite.binding as binding
    except (ImportError, OSError) as error:
        raise CompilerUnavailable(f"llvmlite cannot be imported ({error}); pip install llvmlite") from error
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding


@cache
def host_machine() -> Machine:
    """The processor this runs on.

    Raises:
        CompilerUnavailable: llvmlite is missing, or the processor is not a 64-bit x86 or ARM one.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "aarch64", "arm64") or sys.maxsize <= 2**32:
        raise CompilerUnavailable(f"there is no code for {platform.machine()} processors, only for 64-bit x86 and ARM")
    binding = _llvm()
    triple = binding.get_process_triple()
    try:
        features = binding.get_host_cpu_features().flatten()
    except RuntimeError:  # not known on this platform: what every processor of the architecture has
        return Machine(triple, "", "", *vector_shape(triple, ""))
    if not _may_use_tiles():
        features = features.replace("+amx-", "-amx-")
    return Machine(triple, binding.get_host_cpu_name(), features, *vector_shape(triple, features))


def _may_use_tiles() -> bool:
    """Whether this process may use AMX's registers, which Linux gives to those that ask."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    call = ctypes.CDLL(None).syscall
    call.argtypes, call.restype = [ctypes.c_long] * 3, ctypes.c_long
    return call(arch_prctl, request_permission, tile_data) == 0


def _target_machine(machine: Machine) -> Any:
    target = _llvm().Target.from_triple(machine.triple)
    return target.create_target_machine(cpu=machine.cpu, features=machine.features, opt=3, jit=True)


def object_code(ir: str, machine: Machine) -> bytes:
    """Compile a module: LLVM IR as text in, an object file out.

    Raises:
        RuntimeError: LLVM does not understand the text.
    """
    binding = _llvm()
    module = binding.parse_assembly(ir)
    module.verify()
    target = _target_machine(machine)
    module.triple, module.data_layout = machine.triple, str(target.target_data)
    tuning = binding.create_pipeline_tuning_options(speed_level=2)
    # The loops that count are written as vectors and unrolled already.
    tuning.loop_vectorization = tuning.slp_vectorization = tuning.loop_unrolling = tuning.loop_interleaving = False
    passes = binding.create_pass_builder(target, tuning)
    passes.getModulePassManager().run(module, passes)
    return target.emit_object(module)


# The cache


def cache_folder() -> Path | None:
    """Where object code is kept: INHIBIDISTILBERT_CACHE_DIR, or below the user's cache folder; None without a home."""
    if override := os.environ.get("INHIBIDISTILBERT_CACHE_DIR"):
        return Path(override)
    try:
        if sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = Path.home() / ".cache"
        base = Path(os.environ.get("XDG_CACHE_HOME") or base)
    except RuntimeError:
        return None
    return base / "inhibidistilbert" / "kernels"


def _ours_alone(status: os.stat_result) -> bool:
    """Whether nobody else can write there: what lies in the cache is run."""
    if not hasattr(os, "geteuid"):
        return True  # on Windows the folder is inside the user's profile
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _usable_folder() -> Path | None:
    folder = cache_folder()
    if folder is None:
        return None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _ours_alone(folder.stat()):
            return folder
    except OSError:
        return None
    _warn_of(folder)
    return None


@cache
def _warn_of(folder: Path) -> None:
    logger.warning("%s belongs to or can be written by somebody else: compiled kernels are not kept there.", folder)


def _head(file: Path, code: bytes) -> bytes:
    """What stands before the code in `file`. It binds the two: under another name the code is refused."""
    return _MAGIC + hashlib.sha256(file.name.encode() + b"\n" + code).digest()


def _read(file: Path) -> bytes | None:
    """The object code in `file`; None if there is none, or not a whole one of ours under this name."""
    try:
        # What is no regular file, such as a pipe that nobody writes to, is not waited for.
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or not _ours_alone(status):
                return None
            content = stream.read(_MOST_BYTES)
    except OSError:
        return None
    code = content[len(_MAGIC) + 32 :]
    return code if content == _head(file, code) + code else None


def _write(file: Path, code: bytes) -> None:
    """Under another name first: whoever reads sees all or nothing. Without room or permission there is no file."""
    with contextlib.suppress(OSError):
        for left in file.parent.glob("inhibitor-*.tmp"):  # by processes that were killed
            with contextlib.suppress(OSError):
                if time.time() - left.lstat().st_mtime > _ABANDONED:
                    left.unlink()
        descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=file.stem, suffix=".tmp")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(_head(file, code) + code)
            os.replace(name, file)
        except OSError:
            os.unlink(name)


def _key(ir: str, machine: Machine) -> str:
    """What the object code depends on."""
    versions = _llvm().llvm_version_info, sys.modules["llvmlite"].__version__
    return hashlib.sha256(repr((versions, machine, ir)).encode()).hexdigest()[:32]


# Loading

# `entry` answers from its cache without the lock; behind that, two threads that start together compile once.
_lock = threading.Lock()
_libraries: dict[tuple, "Library"] = {}


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Library:
    """Compiled code in memory, for as long as the process lives."""

    def __init__(self, code: bytes, machine: Machine) -> None:
        binding = _llvm()
        self._engine = binding.create_mcjit_compiler(binding.parse_assembly(""), _target_machine(machine))
        self._engine.add_object_file(binding.ObjectFileRef.from_data(code))
        self._engine.finalize_object()

    def address(self, name: str) -> int:
        """Where an exported function is."""
        address = self._engine.get_function_address(name)
        if not address:
            raise KeyError(f"the library exports no {name!r}")
        return address


@cache
def entry(name: str, generate: Callable[..., str], machine: Machine, *options: int) -> int:
    """The address of the function `name` for `machine`: from memory, from the cache, or compiled now.

    generate: `(machine, *options)` to the IR of a module that exports it.

    Raises:
        CompilerUnavailable: llvmlite is missing.
        RuntimeError: LLVM cannot compile the IR.
    """
    with _lock:
        key = name, generate, machine, options
        if key not in _libraries:
            _libraries[key] = Library(_object_code(name, generate(machine, *options), machine), machine)
        return _libraries[key].address(name)


@cache
def refusal(machine: Callable[[], Machine], *functions: tuple) -> str | None:
    """Why `functions`, each `(name, generate, *options)` of `entry`, cannot be had for `machine()`; None where they can."""
    try:
        for name, generate, *options in functions:
            entry(name, generate, machine(), *options)
    except CompilerUnavailable as error:
        return str(error)
    except Exception as error:  # whatever a compiler may meet: the plain form is there
        return f"its code cannot be compiled here ({type(error).__name__}: {error})"
    return None


@cache
def _announce(machine: Machine, folder: Path | None) -> None:
    kept = "for this process alone" if folder is None else f"once, to be kept in {folder}"
    logger.info("Compiling inhibitor attention for %s, %s: this takes a second or two.", machine.cpu, kept)


def _object_code(name: str, ir: str, machine: Machine) -> bytes:
    """From the cache, or compiled now and put there."""
    folder = _usable_folder()
    file = folder and folder / f"inhibitor-{name}-{_key(ir, machine)}.o"
    code = _read(file) if file else None
    if code is None:
        _announce(machine, folder)
        code = object_code(ir, machine)
        if file:
            _write(file, code)
    return code
