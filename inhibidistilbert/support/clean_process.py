"""Runs a script where nothing of this user's is at hand: no token, home, caches, open files, network library or package.

This is hygiene, not a sandbox. A process of the same user can still open files by their absolute paths, read the environment
of other processes of that user where the system lets it (`/proc/<pid>/environ`), and use the network by its own means.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

SECONDS = 600
# All that is inherited: where libraries lie, language and clock. The second line is what Windows needs to start a process.
_INHERITED = (
    *("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ"),
    *("SYSTEMROOT", "WINDIR", "COMSPEC", "PATHEXT", "NUMBER_OF_PROCESSORS", "PROCESSOR_ARCHITECTURE"),
)
_HOMES = ("HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")
_TEMPORARY = ("TMPDIR", "TEMP", "TMP")
_LAST_WORDS = 20_000  # bytes

# The first lines of a program for which this package does not exist, however it was installed.
BLOCK_PACKAGE = """
import runpy, sys

class PackageIsAbsent:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "inhibidistilbert":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, PackageIsAbsent)
"""
_RUN_SCRIPT = BLOCK_PACKAGE + 'del sys.argv[0]; runpy.run_path(sys.argv[0], run_name="__main__")'


class ProcessError(Exception):
    """What the process said last."""


def clean_environment(home: Path) -> dict[str, str]:
    """The variables of a process whose home, caches and temporary files lie in `home`, and which stays offline."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {
        **inherited,
        **dict.fromkeys((*_HOMES, *_TEMPORARY), str(home)),
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        # The same split of work over threads, hence the same rounding, as in this process.
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }


def run_script(script: str, *arguments: object, folder: Path, home: Path) -> None:
    """Run a Python file in `folder`, in an interpreter that looks neither there nor in the user's packages for modules.

    This package is not there either: everything must come from what the script is given.

    home: what it takes for the user's home; `home / "hub"` is its cache of the Hub.

    Raises:
        ProcessError: it failed, or took longer than `SECONDS`.
    """
    with (folder / "stderr.txt").open("w+b") as stderr:
        process = subprocess.Popen(
            # -B: no bytecode beside what it imports.
            [sys.executable, "-I", "-B", "-c", _RUN_SCRIPT, script, *map(str, arguments)],
            cwd=folder,
            env=clean_environment(home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            close_fds=True,
            start_new_session=True,
        )
        try:
            code = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            raise ProcessError(f"it took longer than {SECONDS} seconds") from None
        finally:
            _end(process)
        if code != 0:
            stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - _LAST_WORDS))
            lines = [line for line in stderr.read().decode(errors="replace").splitlines() if line.strip()]
            raise ProcessError(lines[-1] if lines else f"exit code {code}")


def _end(process: subprocess.Popen) -> None:
    """End it, and where the system has process groups also what it started."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()
