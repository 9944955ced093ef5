"""Runs one part in a process of its own: `python -m inhibidistilbert.benchmarks.gpu.worker MODULE SECONDS FILE`.

Every finding is in the file, a JSON object a line, as soon as there is one.
"""

import importlib
import json
import sys
from pathlib import Path

from .findings import Deadline


def main(module: str, seconds: str, file: str) -> None:
    deadline = Deadline(float(seconds))
    with Path(file).open("w", encoding="utf-8") as lines:
        for finding in importlib.import_module(module).measure(deadline):
            print(json.dumps(finding.as_dict()), file=lines, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
