"""transformers' own tests for models, taken from the source distribution of the installed version and never kept here.

The distribution holds `tests/test_modeling_common.py`, but not every file that one imports. `load_suite` gives the folder a
private package name, so that `tests` stays free, and puts empty stand-ins where a file is missing.
"""

import importlib
import subprocess
import sys
import tarfile
import tempfile
import types
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import transformers
from filelock import FileLock

CACHE = Path(__file__).parents[2] / ".cache" / "transformers-sdist"
PACKAGE = "transformers_source_tests"
# What the two files import from files that the distribution leaves out.
STAND_INS: dict[str, dict[str, Any]] = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils.test_configuration_utils": {"config_common_kwargs": {}},
}


class SuiteUnavailable(Exception):
    """The source distribution could not be had; the message says why."""


class Suite(NamedTuple):
    """transformers' test modules `tests/test_modeling_common.py` and `tests/test_configuration_common.py`."""

    modeling: Any
    configuration: Any


class _NoMarks:
    """Stands in for `pytest.mark`: the suite's marks are not among ours, which pytest would refuse."""

    def __getattr__(self, name: str):
        return lambda test: test


def source_folder() -> Path:
    """The unpacked source distribution of the installed transformers, downloaded with pip once.

    Raises:
        SuiteUnavailable: pip did not get it, or it is of another version.
    """
    folder = CACHE / f"transformers-{transformers.__version__}"
    CACHE.mkdir(parents=True, exist_ok=True)
    # Each worker of pytest-xdist comes here: one downloads, the others wait for it.
    with FileLock(CACHE / ".lock"):
        if not folder.exists():
            _unpack(folder)
    if f"Version: {transformers.__version__}" not in (folder / "PKG-INFO").read_text(encoding="utf-8").splitlines():
        raise SuiteUnavailable(f"{folder} is not transformers {transformers.__version__}: remove it.")
    return folder


def _unpack(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        with tarfile.open(_download(Path(scratch))) as archive:
            wanted = (f"{folder.name}/PKG-INFO", f"{folder.name}/tests/")
            archive.extractall(scratch, [member for member in archive if member.name.startswith(wanted)], filter="data")
        # Renamed when complete: an interrupted run leaves nothing that looks like the real thing.
        (Path(scratch) / folder.name).rename(folder)


def _download(target: Path) -> Path:
    requirement = f"transformers=={transformers.__version__}"
    # Its metadata is made by the setuptools that is here: an environment for that alone takes pip twice as long.
    options = ["--quiet", "--disable-pip-version-check", "--retries", "1", "--no-deps", "--no-build-isolation"]
    options += ["--no-binary", "transformers"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(target), requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    archive = target / f"transformers-{transformers.__version__}.tar.gz"
    if result.returncode or not archive.exists():
        reason = (result.stderr.strip().splitlines() or ["no such file"])[-1]
        raise SuiteUnavailable(f"pip could not download the source distribution of {requirement}: {reason}")
    return archive


def load_suite() -> Suite:
    """Import the two modules, downloading them first where needed.

    Raises:
        SuiteUnavailable: see `source_folder`.
    """
    _add_module(PACKAGE).__path__ = [str(source_folder() / "tests")]
    for name, contents in STAND_INS.items():
        _add_module(f"{PACKAGE}.{name.partition('.')[0]}").__path__ = []
        vars(_add_module(f"{PACKAGE}.{name}")).update(contents)
    with (
        # The list of skips is that of a CPU, whatever the machine has.
        mock.patch.dict("os.environ", TRANSFORMERS_TEST_DEVICE="cpu"),
        mock.patch.object(pytest, "mark", _NoMarks()),
        # It looks for transformers' sources beside the tests.
        mock.patch("transformers.utils.direct_transformers_import", return_value=transformers),
    ):
        return Suite(
            importlib.import_module(f"{PACKAGE}.test_modeling_common"),
            importlib.import_module(f"{PACKAGE}.test_configuration_common"),
        )


def _add_module(name: str) -> types.ModuleType:
    return sys.modules.setdefault(name, types.ModuleType(name))
