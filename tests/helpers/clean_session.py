"""Calls of remote_client.py in an interpreter that cannot import this package."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.helpers import remote_client


@dataclass
class Session:
    """What a clean interpreter reported."""

    report: dict[str, dict]
    stderr: str

    def __getitem__(self, label: str):
        """The value of the call `label`; the test fails with the traceback when the call failed."""
        if "error" in self.report[label]:
            pytest.fail(f"{label} failed in the clean interpreter:\n{self.report[label]['error']}", pytrace=False)
        return self.report[label]["value"]


def run_clean_session(folder: Path, calls: dict[str, list], environment: dict[str, str]) -> Session:
    """Make `calls` of remote_client.py in a new interpreter, with empty caches and another working directory."""
    folder.mkdir()
    (folder / "calls.json").write_text(json.dumps(calls))
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_", "PYTHON"))}
    clean = {
        "HF_HOME": str(folder / "hf_home"),
        "HF_MODULES_CACHE": str(folder / "hf_modules"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # The same split of work over threads, hence the same rounding, as in this process.
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    process = subprocess.run(
        [sys.executable, "-I", remote_client.__file__, "calls.json", "report.json"],
        cwd=folder,
        env={**inherited, **clean, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return Session(json.loads((folder / "report.json").read_text()), process.stderr)
