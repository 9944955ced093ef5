"""Runs command lines, each in a process forked from this one, which has imported all that they need."""

import contextlib
import ctypes
import importlib
import os
import pkgutil
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

SECONDS = 20.0  # longer than any of these cases needs, and no user waits longer for a word
MEMORY = 4 << 30  # bytes that a case may ask for beyond those of this process
FILE_SIZE = 256 << 20  # bytes of any file it writes
# No network, no bars, and nothing of this user's; one thread, because those of torch do not live on in a forked process.
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_ENDPOINT": "http://127.0.0.1:9",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "agg",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}
_CACHES = {"HOME": "home", "HF_HOME": "hub", "INHIBIDISTILBERT_CACHE_DIR": "code", "MPLCONFIGDIR": "home"}


@dataclass(frozen=True)
class Case:
    """A command line, and what its standard streams are.

    Attributes:
        stdin, stdout: what is read and where it goes to: a file, or None where it is closed.
    """

    arguments: tuple[str, ...]
    stdin: str | None = os.devnull
    stdout: str | None = ""

    def __str__(self) -> str:
        """As it would be typed, short enough for a table."""
        words = [repr(word) if not word.isalnum() else word for word in self.arguments]
        streams = [f"<{self.stdin or '&-'}"] * (self.stdin != os.devnull) + [f">{self.stdout or '&-'}"] * (self.stdout != "")
        return " ".join(word if len(word) < 120 else f"{word[:100]}…({len(word)})" for word in [*words, *streams])


@dataclass(frozen=True)
class Outcome:
    """How a case ended. code: negative is a signal; None where it had to be stopped."""

    code: int | None
    output: str
    errors: str
    seconds: float


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A temporary folder, and this process prepared for `run`."""
    if "torch" in sys.modules:
        raise RuntimeError("torch was imported before its threads were limited: run this in a process of its own.")
    with tempfile.TemporaryDirectory(prefix="inhibidistilbert-fuzz-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for part in {*_CACHES.values()}:
            (folder / part).mkdir()
        os.environ.update(ENVIRONMENT | {name: str(folder / part) for name, part in _CACHES.items()})
        yield folder


def import_everything() -> None:
    """Import what the commands import within functions."""
    import inhibidistilbert

    for room in (inhibidistilbert, "commands", "conversion", "evaluation", "distillation", "publishing", "support"):
        module: ModuleType = importlib.import_module(f"inhibidistilbert.{room}") if isinstance(room, str) else room
        for each in pkgutil.iter_modules(module.__path__, f"{module.__name__}."):
            if not each.ispkg and not each.name.endswith(("__main__", "stranger")):  # which are programs
                importlib.import_module(each.name)


def run(case: Case, folder: Path, seconds: float = SECONDS, program: Callable[[], object] | None = None) -> Outcome:
    """Run the command line in `folder`; or another program than this package's.

    What it leaves behind, processes as well, is ended with it.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        sys.stdout.flush()
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            _become(case, folder, output.fileno(), errors.fileno(), program)
        code = _wait(child, began + seconds)
        took = time.monotonic() - began
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        return Outcome(code, _text(output), _text(errors), took)


def _text(file: Any) -> str:
    file.seek(0)
    return file.read(1 << 22).decode(errors="replace")


def _wait(child: int, until: float) -> int | None:
    """The exit code; None where it did not end in time."""
    pause = 0.001
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until + _delay(child):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(pause)
        pause = min(0.05, 1.5 * pause)


def _delay(child: int) -> float:
    """Seconds that it was ready and had no processor: on a busy machine that is no hang."""
    try:
        return int(Path(f"/proc/{child}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def _become(case: Case, folder: Path, output: int, errors: int, program: Callable[[], object] | None) -> None:
    """Be the process of the case, from its streams to its exit code, as the interpreter would."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        os.dup2(errors, 2)
        _open(case.stdin, 0, os.O_RDONLY)
        os.dup2(output, 1) if case.stdout == "" else _open(case.stdout, 1, os.O_WRONLY)
        os.closerange(3, 1 << 10)
        _limit()
        sys.stdin, sys.stdout, sys.stderr = _stream(0, "r"), _stream(1, "w"), _stream(2, "w")
        sys.argv = ["inhibidistilbert", *case.arguments]
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
        if program is None:
            from inhibidistilbert.cli import main as program
        code = _exit_code(program)
    except BaseException:
        os.write(2, traceback.format_exc().encode(errors="replace"))
    finally:
        os._exit(code)


def _open(name: str | None, descriptor: int, flags: int) -> None:
    if name is None:
        os.close(descriptor)
        return
    opened = os.open(name, flags | os.O_NONBLOCK)
    os.set_blocking(opened, True)
    os.dup2(opened, descriptor)


def _stream(descriptor: int, mode: str) -> Any:
    """What `sys` has for it: None where it is closed."""
    try:
        os.fstat(descriptor)
    except OSError:
        return None
    return open(descriptor, mode, encoding="utf-8", errors="backslashreplace" if descriptor == 2 else "strict")


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    limits = {"AS": most, "FSIZE": FILE_SIZE, "CORE": 0, "CPU": 2 * int(SECONDS)}
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    # Without the capabilities of root, which may read what is unreadable for all.
    ctypes.CDLL(None).capset(struct.pack("<Ii", 0x20080522, 0), bytes(24))


def _exit_code(program: Callable[[], object]) -> int:
    """What a Python that ran it ends with."""
    try:
        program()
        code: Any = 0
    except SystemExit as ending:
        code = ending.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except OSError:
        os.write(
            2,
            b"Traceback (most recent call last): while flushing standard output at exit\n" + traceback.format_exc().encode(),
        )
        code = 120
    return code or 0
