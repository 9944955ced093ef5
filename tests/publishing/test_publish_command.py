"""`inhibidistilbert publish`, end to end over HTTP: what it prints, what it sends, and what a stranger gets."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file
from transformers import AutoTokenizer

from inhibidistilbert import InhibiDistilBertForSequenceClassification, cli
from inhibidistilbert.publishing.kernel import KernelPublication
from inhibidistilbert.publishing.model import ModelPublication
from tests.helpers import remote_client
from tests.helpers.code_of_folders import code_of_folders
from tests.helpers.hub import LoopbackHub, WritableHub
from tests.helpers.publishable import REPO_ID, TOKEN, edit_json, edit_weights, fingerprint, replace_in
from tests.helpers.remote_client import model_outputs

COMMAND = "from inhibidistilbert.cli import main; main()"
CLASSIFIER = "AutoModelForSequenceClassification"
CHECKS = [
    "remote",
    "files",
    "weights",
    "auto_map",
    "remote code",
    "known sources",
    "choices",
    "tokenizer",
    "labels",
    "private paths",
    "secrets",
    "card metadata",
    "card",
    "validate-yaml",
    "loading",
]
KERNEL_CHECKS = [
    *("remote", "variants", "known sources", "private paths", "secrets", "card metadata", "card", "validate-yaml", "loading")
]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["inhibidistilbert", "publish", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        output = capsys.readouterr()
        assert TOKEN not in output.out + output.err
        return int(stopped.value.code or 0), output.out, output.err

    return run


def clean_environment(hub: LoopbackHub, home: Path) -> dict[str, str]:
    """A user's environment with an empty cache and the token."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_", "PYTHON"))}
    settings = {"HF_HOME": str(home), "HF_TOKEN": TOKEN, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return {**inherited, **hub.environment(), **settings}


def start(hub: LoopbackHub, home: Path, *arguments: object) -> subprocess.Popen:
    """The command in a new interpreter."""
    command = [sys.executable, "-I", "-c", COMMAND, "publish", *map(str, arguments)]
    pipe = subprocess.PIPE
    environment = clean_environment(hub, home)
    return subprocess.Popen(
        command, cwd=home, env=environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
    )


class TestDryRun:
    def test_nothing_is_written(self, checkpoint, hub, run):
        before = fingerprint(checkpoint)
        code, out, err = run(checkpoint, "--repo-id", REPO_ID, "--dry-run", "--json", "--tag", "v1")
        report = json.loads(out)
        assert (code, err) == (0, "")
        assert (report["repo_id"], report["revision"]) == (REPO_ID, "main")
        assert [check["name"] for check in report["checks"]] == CHECKS
        assert all(check["passed"] for check in report["checks"])
        assert {"path": "model.safetensors", "state": "new"}.items() <= {
            name: value for file in report["files"] if file["path"] == "model.safetensors" for name, value in file.items()
        }.items()
        assert set(report["left_out"]) == {"events.log", "optimizer.pt"}
        assert report["left_out_sections"] == ["Training"]
        assert hub.writes == []
        assert hub.repositories == {}
        assert fingerprint(checkpoint) == before

    def test_needs_no_token(self, checkpoint, hub, run, monkeypatch, tmp_path):
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
        replace_in(checkpoint / "README.md", "license: apache-2.0\n", "")
        code, out, err = run(checkpoint, "--repo-id", REPO_ID, "--dry-run")
        assert code == 1
        assert out.startswith("FAILED: card metadata\n")
        assert "model.safetensors" in out
        assert "README.md: does not give license; add `license: apache-2.0`" in out
        assert err == "error: failed checks: card metadata. Nothing was sent.\n"
        assert hub.bearers == set()

    def test_a_card_to_fill_in(self, checkpoint, run, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr(ModelPublication, "check_loading", lambda self, candidate: iter(()))

        def dry_run() -> tuple[int, list[str]]:
            code, out, _ = run(checkpoint, "--repo-id", REPO_ID, "--dry-run", "--json")
            return code, [problem["what"] for check in json.loads(out)["checks"] for problem in check["problems"]]

        file, missing = checkpoint / "README.md", ["license", "language", "base_model", "base_model_relation", "datasets"]
        file.unlink()
        code, out, err = run(checkpoint, "--init-card")
        assert (code, err, str(file) in out) == (0, "", True)
        limits = "does not say what the limits of this model are"
        assert dry_run() == (1, [f"does not give {name}" for name in missing] + [limits])
        text = file.read_text()
        for name in missing:
            text = text.replace(f"# {name}:", f"{name}:")
        file.write_text(text.replace("ORG/NAME", "someone/teacher") + "English only.\n")
        assert dry_run() == (0, [])
        before = fingerprint(checkpoint)
        code, _, err = run(checkpoint, "--init-card")
        assert (code, "is there already" in err, fingerprint(checkpoint)) == (2, True, before)

    def test_without_the_hub(self, checkpoint, run, monkeypatch):
        """All that can be checked is, and it says what was not."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(ModelPublication, "check_loading", lambda self, candidate: iter(()))
        code, out, err = run(checkpoint, "--repo-id", REPO_ID, "--dry-run", "--json")
        report = json.loads(out)
        assert (code, err, report["hub"]) == (0, "", "not asked")
        assert [check["name"] for check in report["checks"]] == [n for n in CHECKS if n not in ("remote", "validate-yaml")]
        code, out, err = run(checkpoint, "--repo-id", REPO_ID, "--dry-run")
        assert "The Hub was not reached" in out
        code, _, err = run(checkpoint, "--repo-id", REPO_ID, "--yes")
        assert (code, err.count("\n")) == (1, 1)


class TestRefusals:
    def test_failed_check_sends_nothing(self, checkpoint, hub, run):
        edit_json(checkpoint / "distillation.json", lambda log: log.update(note=TOKEN))
        code, out, err = run(checkpoint, "--repo-id", REPO_ID, "--yes", "--json")
        failed = {check["name"]: check["problems"] for check in json.loads(out)["checks"] if not check["passed"]}
        assert (code, list(failed)) == (1, ["secrets"])
        assert failed["secrets"][0]["file"] == "distillation.json"
        assert err == "error: failed checks: secrets. Nothing was sent.\n"
        assert hub.writes == []

    @pytest.mark.parametrize("form", [[], ["--json"]])
    def test_a_secret_is_never_shown(self, form, checkpoint, hub, run):
        """Neither on the card, which is shown before the checks, nor in the name of a file; `run` looks for it."""
        replace_in(checkpoint / "README.md", "Irony is misread.", f"Irony {TOKEN} is misread.")
        replace_in(checkpoint / "README.md", "license: apache-2.0", f"license: {TOKEN}")
        (checkpoint / f"{TOKEN}.txt").write_text("")
        code, out, _ = run(checkpoint, "--repo-id", REPO_ID, "--dry-run", *form)
        assert code == 1
        assert "[not shown: the token in use]" in out
        assert hub.writes == []

    def test_a_secret_is_not_quoted_in_an_error(self, checkpoint, hub, run):
        replace_in(checkpoint / "README.md", "license: apache-2.0", f"license: [{TOKEN}")
        code, out, err = run(checkpoint, "--repo-id", REPO_ID, "--dry-run")
        assert (code, out) == (2, "")
        assert err.count("\n") == 1

    def test_the_hub_is_asked_before_there_is_a_repository(self, checkpoint, hub, run):
        """A licence that the package knows and this Hub does not."""
        replace_in(checkpoint / "README.md", "license: apache-2.0", "license: wtfpl")
        code, out, err = run(checkpoint, "--repo-id", REPO_ID, "--yes", "--json")
        (failed,) = [check for check in json.loads(out)["checks"] if not check["passed"]]
        assert (code, failed["name"], failed["problems"][0]["file"]) == (1, "validate-yaml", "README.md")
        assert '"license" must be one of' in failed["problems"][0]["what"]
        assert err == "error: failed checks: validate-yaml. Nothing was sent.\n"
        assert "POST /api/validate-yaml" in hub.requests
        assert hub.writes == []
        assert hub.repositories == {}

    def test_a_hub_that_does_not_say(self, checkpoint, hub, run):
        hub.fail("POST /api/validate-yaml", 503)
        code, _, err = run(checkpoint, "--repo-id", REPO_ID, "--yes", "--json")
        assert (code, err.startswith("error: the Hub failed (HTTP 503)")) == (1, True)
        assert hub.writes == []

    def test_a_card_with_a_secret_is_not_sent_to_be_checked(self, checkpoint, hub, run):
        replace_in(checkpoint / "README.md", "Irony is misread.", f"Irony {TOKEN} is misread.")
        assert run(checkpoint, "--repo-id", REPO_ID, "--yes")[0] == 1
        assert "POST /api/validate-yaml" not in hub.requests

    def test_wrong_token(self, checkpoint, hub, run, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_AnotherTokenThatIsWrong")
        code, out, err = run(checkpoint, "--repo-id", REPO_ID, "--yes")
        assert (code, out) == (1, "")
        assert err.startswith("error: the Hub does not accept the token")
        assert "AnotherToken" not in err
        assert hub.writes == []

    def test_no_token(self, checkpoint, hub, run, monkeypatch, tmp_path):
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
        code, _, err = run(checkpoint, "--repo-id", REPO_ID, "--yes")
        assert (code, err) == (2, "error: there is no token: log in with `hf auth login`, or set HF_TOKEN.\n")

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["{folder}"], "--repo-id is missing"),
            (["{folder}", "--repo-id", "tiny"], "--repo-id must be organisation/name, got 'tiny'"),
            (["{folder}", "--repo-id", "a/b/c"], "--repo-id must be organisation/name"),
            (["--repo-id", REPO_ID], "CHECKPOINT_DIR is missing"),
            (["{folder}", "--kernel", "--repo-id", REPO_ID], "leave out CHECKPOINT_DIR"),
            (["{folder}", "--repo-id", REPO_ID], "give --yes"),
            (["{folder}", "--repo-id", REPO_ID, "--yes", "--create-pr"], "needs a repository that exists"),
            (["{folder}/nowhere", "--repo-id", REPO_ID, "--yes"], "is not a folder"),
            (["{folder}", "--repo-id", REPO_ID, "--yes", "--tag", 'v1"); import os #'], "--tag must be a name of"),
            (["{folder}", "--repo-id", REPO_ID, "--yes", "--revision", "a b"], "--revision must be a name of"),
            (
                ["{folder}", "--repo-id", REPO_ID, "--yes", "--commit-message", "from /home/someone/x"],
                "--commit-message holds",
            ),
            (["--verify", "tiny"], "--verify must be organisation/name"),
        ],
    )
    def test_bad_input(self, arguments, words, checkpoint, hub, run):
        code, out, err = run(*(argument.format(folder=checkpoint) for argument in arguments))
        assert (code, out) == (2, "")
        assert words in err
        assert err.count("\n") == 1
        assert hub.writes == []


class TestPublish:
    def test_loaded_by_a_stranger(self, checkpoint, hub, run, tmp_path, monkeypatch):
        # What the dry run does already, and the stranger below.
        for check in ("check_loading", "check_from_hub"):
            monkeypatch.setattr(ModelPublication, check, lambda self, candidate, **_: iter(()))
        before = fingerprint(checkpoint)
        code, out, err = run(checkpoint, "--repo-id", REPO_ID, "--yes", "--tag", "v1")
        assert code == 0, err
        assert hub.bearers == {TOKEN}
        commit = hub.repository(REPO_ID).head("v1").id
        assert f"{hub.endpoint}/{REPO_ID}/tree/{commit}" in out
        lines = out[out.rindex("from transformers import pipeline") :].splitlines()
        call = f'pipeline("text-classification", model="{REPO_ID}", revision="v1", trust_remote_code=True)'
        assert lines[:2] == ["from transformers import pipeline", f"model = {call}"]
        assert fingerprint(checkpoint) == before
        self.check_strangers_logits(checkpoint, hub, tmp_path / "stranger")

    @pytest.mark.slow
    def test_killed_and_resumed(self, checkpoint, hub, run, tmp_path):
        """Three runs of one command: killed in the middle of the weights, whole, and with nothing to do."""
        before = fingerprint(checkpoint)
        self.kill_in_the_middle(checkpoint, hub, tmp_path / "killed")
        assert list(hub.repository(REPO_ID).head("main").files) == [".gitattributes"]
        assert hub.large == {}
        sent, writes = [], []
        for _ in range(2):
            code, out, _ = run(checkpoint, "--repo-id", REPO_ID, "--yes", "--tag", "v1", "--json")
            report = json.loads(out)
            assert code == 0
            assert all(check["passed"] for check in report["verified"])
            sent.append(report["sent"])
            writes.append(len(hub.writes))
        assert sent == [True, False]
        assert writes[0] == writes[1]
        assert sum("/repos/create" in request for request in hub.writes) == 1
        assert fingerprint(checkpoint) == before

    @staticmethod
    def kill_in_the_middle(checkpoint: Path, hub: WritableHub, home: Path) -> None:
        home.mkdir()
        half_way, killed = threading.Event(), threading.Event()

        def wait_for_the_end() -> None:
            half_way.set()
            killed.wait(60)

        hub.at_cut = wait_for_the_end
        hub.cut(r"PUT /lfs/.*")
        process = start(hub, home, checkpoint, "--repo-id", REPO_ID, "--yes", "--tag", "v1")
        assert half_way.wait(120), process.communicate(timeout=10)
        process.kill()
        process.communicate(timeout=30)
        killed.set()

    @staticmethod
    def check_strangers_logits(checkpoint: Path, hub: WritableHub, folder: Path) -> None:
        """In an interpreter that cannot import this package, by name and tag."""
        folder.mkdir()
        target = folder / "outputs.safetensors"
        arguments = {"sources": {CLASSIFIER: REPO_ID}, "target": str(target), "revision": "v1"}
        (folder / "calls.json").write_text(json.dumps({"outputs": ["outputs", arguments]}))
        subprocess.run(
            [sys.executable, "-I", remote_client.__file__, "calls.json", "report.json"],
            cwd=folder,
            env=clean_environment(hub, folder / "home"),
            check=True,
            capture_output=True,
            timeout=300,
        )
        report = json.loads((folder / "report.json").read_text())
        assert "error" not in report["outputs"], report["outputs"]
        model = InhibiDistilBertForSequenceClassification.from_pretrained(checkpoint)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        for name, theirs in load_file(target).items():
            model.set_attn_implementation(name.rpartition("/")[2])
            torch.testing.assert_close(theirs, model_outputs(model, tokenizer))


def spy(file: Path, witness: Path) -> Path:
    """Three lines in `file` that write to `witness` what secrets they find."""
    lines = [
        "import os as _os, sys as _sys, json as _json, huggingface_hub as _hub",
        "_seen = {'token': _hub.get_token(), 'stdin': _sys.stdin.read(), 'home': _os.path.expanduser('~')}",
        # Spelt out: a private path in the code would be found as such.
        f"open(bytes({list(os.fsencode(witness))}), 'w').write(_json.dumps(_seen | dict(_os.environ)))",
    ]
    file.write_text("\n".join([*lines, file.read_text()]))
    return witness


class TestVerify:
    @pytest.mark.slow
    def test_good_and_damaged(self, checkpoint, hub, run):
        assert run(checkpoint, "--repo-id", REPO_ID, "--yes", "--json")[0] == 0
        good = hub.repository(REPO_ID).head("main")
        weights = checkpoint / "model.safetensors"
        edit_weights(checkpoint, lambda tensors: tensors["classifier.weight"].fill_(float("nan")))
        damaged = hub.put(REPO_ID, {"model.safetensors": weights.read_bytes()})
        writes = len(hub.writes)
        code, out, err = run("--verify", f"{REPO_ID}@{good.id}", "--json")
        report = json.loads(out)
        assert (code, err, report["commit"]) == (0, "", good.id)
        assert report["checks"][-1] == {"name": "loading as data", "passed": True, "problems": []}
        code, out, err = run("--verify", REPO_ID)
        assert code == 1
        assert damaged in out
        assert "model.safetensors: classifier.weight is not finite" in out
        assert "failed checks: weights. Nothing was changed." in err
        assert len(hub.writes) == writes

    def test_a_strangers_code_is_not_run(self, candidate, hub, run, tmp_path, monkeypatch):
        """Three lines that write the token to a file: by default they are seen, and no process is started."""
        loaded_before = code_of_folders()
        witness = spy(candidate.folder / "modeling_inhibidistilbert.py", tmp_path / "witness")
        hub.put(REPO_ID, {name: file.read_bytes() for name, file in candidate.files.items()})
        monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: pytest.fail("a process was started"))
        code, out, err = run("--verify", REPO_ID, "--json")
        failed = [check for check in json.loads(out)["checks"] if not check["passed"]]
        assert code == 1
        assert [check["name"] for check in failed] == ["known sources"]
        (problem,) = failed[0]["problems"]
        assert problem["file"] == "modeling_inhibidistilbert.py"
        assert problem["what"] == "differs from every known release"
        assert "--trust-remote-code" in problem["remedy"]
        assert "usage" not in json.loads(out)
        assert err == "error: failed checks: known sources. Nothing was changed.\n"
        assert not witness.exists()
        assert code_of_folders() == loaded_before

    def test_with_trust_it_runs_without_token_and_home(self, candidate, hub, run, tmp_path, monkeypatch):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", TOKEN)
        witness = spy(candidate.folder / "modeling_inhibidistilbert.py", tmp_path / "witness")
        hub.put(REPO_ID, {name: file.read_bytes() for name, file in candidate.files.items()})
        code, out, err = run("--verify", REPO_ID, "--trust-remote-code", "--json")
        report = json.loads(out)
        assert (code, err) == (0, "")
        assert report["checks"][-1] == {"name": "loading from the Hub", "passed": True, "problems": []}
        assert report["foreign_code"] == {"modeling_inhibidistilbert.py": "differs from every known release"}
        seen = json.loads(witness.read_text())
        assert TOKEN not in witness.read_text()
        assert (seen["token"], seen["stdin"]) == (None, "")
        assert Path(seen["home"]) != Path.home()
        assert not os.path.lexists(seen["home"])

    def test_a_good_one_is_loaded_as_data(self, candidate, checkpoint, hub, run, monkeypatch):
        hub.put(REPO_ID, {name: file.read_bytes() for name, file in candidate.files.items()})
        monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: pytest.fail("a process was started"))
        code, out, _ = run(checkpoint, "--verify", REPO_ID, "--json")
        report = json.loads(out)
        assert code == 0
        assert report["checks"][-1] == {"name": "loading as data", "passed": True, "problems": []}
        assert report["usage"][0] == "from transformers import pipeline"
        edit_weights(checkpoint, lambda tensors: tensors["classifier.bias"].add_(1e-2))
        code, out, _ = run(checkpoint, "--verify", REPO_ID)
        assert code == 1
        assert "model.safetensors: with attn_implementation='inhibitor' outputs differ" in out

    def test_trust_goes_with_verify(self, checkpoint, hub, run):
        code, _, err = run(checkpoint, "--repo-id", REPO_ID, "--trust-remote-code", "--dry-run")
        assert (code, err) == (
            2,
            "error: --trust-remote-code goes with --verify: what is published has this package's own code.\n",
        )

    def test_nothing_there(self, hub, run):
        code, _, err = run("--verify", "nobody/nothing")
        assert code == 1
        assert err == (
            "error: the Hub finds no such repository, or the token may not see it (HTTP 404). Nothing was verified.\n"
        )


def test_kernel_by_a_client_too_old_for_it(hub, run, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.33.0")
    code, _, err = run("--kernel", "--repo-id", "someone/inhibitor", "--yes")
    assert (code, err) == (
        2,
        "error: --kernel needs huggingface_hub 2.4 or later: pip install --upgrade huggingface_hub transformers.\n",
    )
    assert not hub.requests


@pytest.mark.skipif(Version("2.4") > Version(version("huggingface_hub")), reason="refused, as the test above has it")
def test_kernel(hub, run, monkeypatch):
    """To the branch that the library `kernels` looks in; the card names the repository; again, nothing is sent."""
    # What was done before the files were sent, with files that are now compared with those.
    monkeypatch.setattr(KernelPublication, "check_from_hub", lambda self, candidate, **_: iter(()))
    code, out, err = run("--kernel", "--repo-id", "someone/inhibitor", "--yes", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["revision"] == "v0"
    assert [check["name"] for check in report["checks"]] == KERNEL_CHECKS
    assert all(check["passed"] for check in report["checks"] + report["verified"])
    head = hub.repository("someone/inhibitor", "kernels").head("v0")
    assert not [name for name in head.files if name.endswith(".pyc")]
    assert b'get_kernel("someone/inhibitor"' in head.files["README.md"]
    assert {"build.toml", "build/torch-cuda/metadata.json", "torch-ext/inhibitor/__init__.py"} <= head.files.keys()
    assert hub.repository("someone/inhibitor", "kernels").private
    source = "build/torch-cpu/reference.py"
    hub.put("someone/inhibitor", {source: head.files[source] + b"\n"}, branch="v0", kind="kernels")
    code, out, _ = run("--kernel", "--verify", "someone/inhibitor@v0")
    assert code == 1
    assert f"{source}: is not the file that metadata.json was made for" in out


@pytest.mark.slow  # a stranger's model stays
def test_a_strangers_kernel(hub, run, tmp_path):
    """Its metadata fits its code, so only the comparison tells; with trust it runs, without token."""
    candidate = KernelPublication().assemble(tmp_path / "kernel", "someone/inhibitor")
    init = candidate.folder / "build/torch-cpu/__init__.py"
    witness = spy(init, tmp_path / "witness")
    digest = base64.b64encode(hashlib.sha256(init.read_bytes()).digest()).decode()
    metadata = init.with_name("metadata.json")
    edit_json(metadata, lambda content: content["digest"]["files"].update({"__init__.py": digest}))
    hub.put("someone/inhibitor", {name: file.read_bytes() for name, file in candidate.files.items()}, kind="kernels")
    code, out, err = run("--kernel", "--verify", "someone/inhibitor")
    assert (code, err) == (1, "error: failed checks: known sources. Nothing was changed.\n")
    for name in ("__init__.py", "metadata.json"):
        assert f"build/torch-cpu/{name}: differs from every known release" in out
    assert not witness.exists()
    code, out, _ = run("--kernel", "--verify", "someone/inhibitor", "--trust-remote-code", "--json")
    assert code == 0
    assert [check["name"] for check in json.loads(out)["checks"]][-1] == "loading"
    assert json.loads(witness.read_text())["token"] is None
    assert TOKEN not in witness.read_text()
