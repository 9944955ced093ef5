"""A clean process has nothing of this one's, and ends with all that it started."""

import json
import os
import sys
import time

import pytest

from inhibidistilbert.support import clean_process
from inhibidistilbert.support.clean_process import ProcessError, run_script

LOOK = """
import json, os, sys
seen = {
    "environment": dict(os.environ),
    "stdin": sys.stdin.read(),
    "folder": os.getcwd(),
    "paths": sys.path,
    "arguments": sys.argv[1:],
    "open": [int(fd) for fd in os.listdir("/proc/self/fd")] if os.path.isdir("/proc/self/fd") else [],
}
open("seen.json", "w").write(json.dumps(seen))
"""
SECRETS = {
    "HF_TOKEN": "hf_secret",
    "HUGGING_FACE_HUB_TOKEN": "hf_secret",
    "HF_ENDPOINT": "https://user:secret@hub.invalid",
    "HTTPS_PROXY": "http://user:secret@proxy.invalid",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "SSH_AUTH_SOCK": "/secret",
    "PYTHONSTARTUP": "/secret",
    "LD_PRELOAD": "",
}


@pytest.fixture
def run(tmp_path):
    """Run this code in a clean process, in `tmp_path / "folder"`."""
    folder, home = tmp_path / "folder", tmp_path / "home"
    folder.mkdir()
    home.mkdir()

    def run(code: str) -> None:
        script = tmp_path / "script.py"
        script.write_text(code)
        run_script(str(script), "one", folder=folder, home=home)

    return run


def test_nothing_of_this_process_is_there(run, monkeypatch, tmp_path):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "folder" / "json.py").write_text("raise SystemExit('shadowed')")
    inherited, writing = os.pipe()
    os.set_inheritable(inherited, True)
    run(LOOK)
    os.close(inherited)
    os.close(writing)
    seen = json.loads((tmp_path / "folder" / "seen.json").read_text())
    environment = seen["environment"]
    assert not SECRETS.keys() & environment.keys()
    assert "secret" not in json.dumps(environment)
    homes = {environment[name] for name in ("HOME", "HF_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TMPDIR")}
    assert homes == {str(tmp_path / "home")}
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert (seen["stdin"], seen["arguments"]) == ("", ["one"])
    assert seen["folder"] == str(tmp_path / "folder")
    assert not {"", str(tmp_path), str(tmp_path / "folder")} & {*seen["paths"]}
    # Its own three, and the one that lists them.
    assert inherited not in seen["open"]
    assert len(seen["open"]) <= 4


def test_what_went_wrong_is_the_last_line(run):
    with pytest.raises(ProcessError, match=r"^ValueError: broken$"):
        run("print('noise'); raise ValueError('broken')")
    with pytest.raises(ProcessError, match=r"^exit code 3$"):
        run("raise SystemExit(3)")


def test_this_package_is_not_there(run):
    with pytest.raises(ProcessError, match=r"^ModuleNotFoundError: No module named 'inhibidistilbert'$"):
        run("import inhibidistilbert")


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups here")
def test_it_ends_in_time_with_all_that_it_started(run, monkeypatch, tmp_path):
    child = "import time, pathlib; time.sleep(2); pathlib.Path('late').write_text('x')"
    start = f"import subprocess, time; subprocess.Popen([{sys.executable!r}, '-c', {child!r}])"
    run(start)
    monkeypatch.setattr(clean_process, "SECONDS", 1)
    with pytest.raises(ProcessError, match="longer than 1 seconds"):
        run(f"{start}; time.sleep(60)")
    time.sleep(2)
    assert not (tmp_path / "folder" / "late").exists()
