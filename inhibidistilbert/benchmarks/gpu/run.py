"""Runs the parts one after the other, each in a process of its own: what breaks one leaves the others alone."""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .findings import Deadline, Finding, PartState

# The whole run with the start of its processes takes less than eight minutes.
TOTAL_SECONDS = 460
# A part looks at its time between two measurements; after so many more seconds it is ended.
GRACE_SECONDS = 20


@dataclass(frozen=True)
class Part:
    """A part of the run.

    Attributes:
        name: for the table and the files.
        module: what has its `measure(deadline)`, an iterator of findings.
        seconds: that it may take.
    """

    name: str
    module: str
    seconds: float


PARTS = (
    Part("correctness", f"{__package__}.correctness", 115),
    Part("kernels", f"{__package__}.kernels", 75),
    Part("one-bit", f"{__package__}.matrix_rate", 20),
    Part("models", f"{__package__}.models", 165),
    Part("training", f"{__package__}.training", 45),
)


@dataclass(frozen=True)
class Outcome:
    """What came of a part; `trouble` says what went wrong, and is empty where nothing did."""

    part: Part
    findings: Sequence[Finding]
    seconds: float
    trouble: str = ""

    @property
    def failed(self) -> bool:
        return bool(self.trouble) or any(finding.failed for finding in self.findings)

    @property
    def summary(self) -> str:
        """What is wrong or missing, on one line."""
        wrong = [finding for finding in self.findings if finding.failed]
        missing = sum(finding.value is None and not finding.failed for finding in self.findings)
        words = [self.trouble] if self.trouble else []
        if wrong:
            words.append(f"{len(wrong)} failed, first {wrong[0].case} {wrong[0].setting}: {wrong[0].note}")
        if missing:
            words.append(f"{missing} without a figure")
        return "; ".join(words)

    def state(self) -> PartState:
        return PartState(self.part.name, "failed" if self.failed else "done", round(self.seconds, 1), self.summary)


def run(parts: Sequence[Part], total: float = TOTAL_SECONDS) -> Iterator[Outcome]:
    """Run the parts in their order; one for which no time is left is a failure too."""
    everything = Deadline(total)
    for part in parts:
        seconds = min(part.seconds, everything.left)
        if seconds < 1:
            yield Outcome(part, [], 0, f"not begun: the {total:.0f} s of the run are used up")
        else:
            yield run_part(part, seconds, min(seconds + GRACE_SECONDS, everything.left + GRACE_SECONDS / 2))


def run_part(part: Part, seconds: float, limit: float) -> Outcome:
    """Run a part that has `seconds`, and end it with all its processes after `limit`; what it prints goes to stderr."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder, "findings"), Path(folder, "log")
        with log.open("wb") as output:
            command = [sys.executable, "-m", f"{__package__}.run", part.module, str(seconds), str(file)]
            # With a session of its own, so that its children end with it.
            process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
            trouble = _wait(process, limit)
        text = log.read_text(encoding="utf-8", errors="replace")
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    if trouble:
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
        trouble = f"{trouble}: {last[:300]}" if last else trouble
        print(f"--- {part.name}: {trouble}\n{text}", file=sys.stderr)
    findings = [Finding(**json.loads(line)) for line in lines if line.endswith("}")]
    return Outcome(part, findings, time.monotonic() - start, trouble)


def _wait(process: subprocess.Popen, limit: float) -> str:
    """What went wrong; empty where the process ended well in time. None of its children is left."""
    try:
        code = process.wait(timeout=limit)
        return f"ended with exit code {code}" if code else ""
    except subprocess.TimeoutExpired:
        return f"ended after {limit:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main(module: str, seconds: str, file: str) -> None:
    """Run one part, in a process of its own: every finding is in the file, a JSON object a line, as soon as there is one."""
    deadline = Deadline(float(seconds))
    with Path(file).open("w", encoding="utf-8") as lines:
        for finding in importlib.import_module(module).measure(deadline):
            print(json.dumps(finding.as_dict()), file=lines, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
