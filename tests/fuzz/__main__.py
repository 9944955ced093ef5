"""Feeds the command line what it must refuse, and prints what it did wrong: `python -m tests.fuzz --seed 0`."""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .judging import KEPT, REFUSED, complaint, difference, result
from .running import import_everything, run, workplace

CODES = {"publish": (0, 1, 2)}  # other commands document 0 and 2
COMPARED = ("predict", "evaluate", "quantize", "convert")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folders", type=int, default=500, help="how many spoilt folders")
    parser.add_argument("--lines", type=int, default=1000, help="how many command lines")
    parser.add_argument("--first", type=int, default=0, help="where in both lists to begin")
    parser.add_argument("--only", metavar="folder-N|line-N", help="repeat one, and show all that it said")
    options = parser.parse_args()
    chosen = [(kind, options.first + place) for kind in ("folder", "line") for place in range(getattr(options, f"{kind}s"))]
    if options.only:
        kind, _, place = options.only.partition("-")
        chosen = [(kind, int(place))]
    began = time.monotonic()
    with workplace() as place:
        failures = list(failing(place, options.seed, chosen, bool(options.only)))
    print(f"{len(chosen)} cases of seed {options.seed}, {len(failures)} failed; {time.monotonic() - began:.0f} s")
    if failures:
        print(f'one again: make fuzz SEED={options.seed} CASES="--only {failures[0]}"')
    return int(bool(failures))


def failing(place: Path, seed: int, chosen: list[tuple[str, int]], shown: bool) -> Iterator[str]:
    """The names of the cases that fail, each told as it does."""
    import_everything()
    from . import command_lines, spoilt_folders

    spoilt_folders.write_originals(place)
    expected: dict[str, Any] = {}
    for kind, number in chosen:
        with case_folder(place) as folder:
            make = spoilt_folders.made if kind == "folder" else command_lines.made
            trial = make(seed, number, place, folder)
            outcome = run(trial.case, folder)
            wrong = complaint(outcome, CODES.get(trial.command, (0, 2)))
            if wrong is None and outcome.code == 0 and trial.meaning == REFUSED:
                wrong = "exit code 0, but the input is no such thing"
            if wrong is None and outcome.code == 0 and trial.meaning == KEPT and trial.command in COMPARED:
                if trial.command not in expected:
                    expected[trial.command] = right_result(trial.command, place)
                wrong = difference(result(outcome, folder), expected[trial.command])
        if shown:
            print(f"{trial.what}\n{trial.case}\nexit code {outcome.code}\n{outcome.output}{outcome.errors}")
        if wrong:
            name = f"{kind}-{number}"
            print(f"{name} ({outcome.seconds:.1f} s): {wrong}\n    {trial.what} [{trial.case}]", flush=True)
            yield name


def right_result(command: str, place: Path) -> Any:
    """The result of a command of a folder with which nothing is wrong."""
    from . import spoilt_folders

    with case_folder(place) as folder:
        spoilt_folders.unspoilt(command, place, folder)
        outcome = run(spoilt_folders.cases(place)[command], folder)
        if outcome.code != 0:
            raise RuntimeError(f"{command} failed on a folder with which nothing is wrong: {outcome.errors}")
        return result(outcome, folder)


@contextmanager
def case_folder(place: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=place, prefix="case-", ignore_cleanup_errors=True) as name:
        yield Path(name)


if __name__ == "__main__":
    sys.exit(main())
