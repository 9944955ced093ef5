"""That what judges the command line sees each thing that it must not do; and a small part of `make fuzz`."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from .judging import complaint, difference, result
from .running import Case, run


def raising():
    raise ValueError("what nobody caught")


def saying(*lines, code=2):
    def program():
        print(*lines, sep="\n", file=sys.stderr)
        sys.exit(code)

    return program


@pytest.mark.parametrize(
    ("program", "told"),
    [
        (raising, "traceback: ValueError: what nobody caught"),
        (lambda: bytearray(1 << 40), "traceback: MemoryError"),
        (lambda: time.sleep(60), "no end within"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "death by SIGSEGV"),
        (saying("error: a", code=3), "exit code 3: error: a"),
        (saying("error: a", code=1), "exit code 1: error: a"),
        (saying("error: standard output cannot be written (why).", code=1), None),
        (saying("a"), "exit code 2 and 0 lines of error"),
        (saying("error: a", "error: b"), "exit code 2 and 2 lines of error"),
        (saying("error: a", "in b"), "exit code 2 and 1 lines of error, not one at the end"),
        (saying("error: " + "a" * 3000), "an error of 3007 characters"),
        (saying("warning: a", "error: b"), None),
        (saying("a note", code=0), None),
    ],
)
def test_the_judge(tmp_path, program, told):
    found = complaint(run(Case(()), tmp_path, 1.0, program))
    assert found is None if told is None else found.startswith(told)


def test_a_full_output_that_nobody_noticed(tmp_path):
    assert "traceback" in complaint(run(Case((), stdout="/dev/full"), tmp_path, 1.0, lambda: print("a")))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, None),
        ({"score": 0.80001}, None),
        ({"label": "NEGATIVE"}, "exit code 0, but [0].label is NEGATIVE and not POSITIVE"),
        ({"score": 0.7}, "exit code 0, but [0].score is 0.7 and not 0.8"),
    ],
)
def test_a_wrong_result(tmp_path, changes, told):
    right = {"text": "a", "label": "POSITIVE", "score": 0.8}
    ended = run(Case(()), tmp_path, 1.0, lambda: print(json.dumps(right | changes)))
    assert difference(result(ended, tmp_path), [right]) == told


@pytest.mark.slow
def test_a_part_of_the_fuzz():
    command = [sys.executable, "-m", "tests.fuzz", "--folders=25", "--lines=40"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
