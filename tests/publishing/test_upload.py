"""Plans and uploads: only what is missing is sent, and whatever goes wrong the Hub keeps its last good commit."""

import hashlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from huggingface_hub import HfApi

from inhibidistilbert.publishing import client
from inhibidistilbert.publishing.checks import Problem
from inhibidistilbert.publishing.errors import PublishError
from inhibidistilbert.publishing.kernel import KernelPublication
from inhibidistilbert.publishing.model import ModelPublication
from inhibidistilbert.publishing.plan import Plan, Remote, Target, make_plan
from inhibidistilbert.publishing.upload import Published, send, telling
from inhibidistilbert.support.errors import UserError
from tests.helpers.hub import Response
from tests.helpers.publishable import REPO_ID, TOKEN, assembled, edit_weights, fingerprint, replace_in, write_checkpoint
from tests.helpers.slow import slow_but_first

ALWAYS = 100
COMMIT = r"POST /api/models/someone/tiny/commit/.*"
LARGE = r"PUT /lfs/.*"


def plan_for(candidate, **options) -> Plan:
    return make_plan(HfApi(), Target(REPO_ID, ModelPublication(), **options), candidate.files)


def publish(candidate, **options) -> Published:
    return send(HfApi(), plan_for(candidate, **options), candidate.files)


def files_at(hub, revision="main") -> dict[str, bytes]:
    return dict(hub.repository(REPO_ID).head(revision).files)


def states(plan: Plan) -> dict[str, str]:
    return {file.path: file.state for file in plan.files}


@pytest.fixture
def next_version(candidate, checkpoint, tmp_path):
    """Other weights and words, the rest the same."""
    edit_weights(checkpoint, lambda weights: weights["classifier.bias"].add_(1))
    replace_in(checkpoint / "README.md", "Irony is misread.", "Irony and puns are misread.")
    return assembled(checkpoint, tmp_path / "next")


class TestPlan:
    def test_new_repository(self, candidate, hub):
        plan = plan_for(candidate)
        assert not plan.remote.exists
        assert set(states(plan).values()) == {"new"}
        assert hub.writes == []

    def test_states(self, candidate, next_version, hub):
        publish(candidate)
        # "vocab.txt" would be read by another version of the tokenizer; "figure.png" is not this tool's.
        hub.put(REPO_ID, {"vocab.txt": b"old", "figure.png": b"png", "results/old.py": b"pass"})
        writes = len(hub.writes)
        found = states(plan_for(next_version))
        changed = {name for name, state in found.items() if state == "changed"}
        assert changed == {"README.md", "model.safetensors"}
        assert (found["vocab.txt"], found["figure.png"], found["results/old.py"]) == ("removed", "kept", "kept")
        assert found["config.json"] == "same"
        assert len(hub.writes) == writes

    def test_removed_files_go_and_kept_ones_stay(self, candidate, hub):
        hub.put(REPO_ID, {"vocab.txt": b"old", "figure.png": b"png"})
        publish(candidate)
        assert "vocab.txt" not in files_at(hub)
        assert files_at(hub)["figure.png"] == b"png"

    def test_another_models_repository_is_refused(self, candidate, hub):
        hub.put(REPO_ID, {"config.json": b'{"model_type": "bert: large"}'})
        (refusal,) = plan_for(candidate).refusals
        what = f"{REPO_ID} holds a model of type 'bert: large', not 'inhibidistilbert'"
        assert refusal == Problem(REPO_ID, what, "give another --repo-id")

    def test_a_tag_is_never_moved(self, candidate, next_version, hub):
        publish(candidate, tag="v1")
        assert plan_for(candidate, tag="v1").refusals == ()
        (refusal,) = plan_for(next_version, tag="v1").refusals
        what = "tag 'v1' exists at another commit and is never moved"
        assert refusal == Problem(REPO_ID, what, "give another --tag")

    def test_revisions_that_take_no_commit(self, candidate, hub):
        publish(candidate, tag="v1")
        for revision in ("v1", "refs/pr/7"):
            with pytest.raises(UserError, match=f"--revision must be .*{revision}"):
                plan_for(candidate, revision=revision)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"create_pr": True, "tag": "v1"}, "--tag and --create-pr"),
            ({"create_pr": True, "revision": "refs/pr/1"}, "needs a branch"),
            ({"message": "  "}, "--commit-message"),
            ({"publication": KernelPublication(), "collection": "x"}, "--kernel goes with neither"),
        ],
    )
    def test_options_that_do_not_go_together(self, options, words):
        with pytest.raises(UserError, match=words):
            Target(REPO_ID, **({"publication": ModelPublication()} | options))

    def test_pull_request_to_nowhere(self, candidate, hub):
        with pytest.raises(UserError, match="--create-pr needs a repository that exists"):
            plan_for(candidate, create_pr=True)


class TestSend:
    def test_everything_arrives(self, candidate, hub):
        published = publish(candidate, tag="v1")
        assert published.sent
        expected = {name: file.read_bytes() for name, file in candidate.files.items()}
        assert {name: content for name, content in files_at(hub, "v1").items() if name in expected} == expected
        assert hub.repository(REPO_ID).head("main").id == published.commit

    def test_private_by_default_and_public_when_asked(self, candidate, hub):
        publish(candidate)
        assert hub.repository(REPO_ID).private
        del hub.repositories[f"models/{REPO_ID}"]
        publish(candidate, private=False)
        assert not hub.repository(REPO_ID).private

    def test_visibility_of_an_existing_repository_stays(self, candidate, hub):
        hub.put(REPO_ID, {})
        publish(candidate, private=False)
        assert hub.repository(REPO_ID).private

    def test_again_sends_nothing(self, candidate, hub):
        hub.collections["someone/best"] = []
        first = publish(candidate, tag="v1", collection="someone/best")
        assert hub.collections["someone/best"] == [REPO_ID]
        writes = len(hub.writes)
        again = publish(candidate, tag="v1", collection="someone/best")
        assert (again.commit, again.sent) == (first.commit, False)
        assert len(hub.writes) == writes

    def test_next_version_sends_what_changed(self, candidate, next_version, hub):
        publish(candidate)
        before = files_at(hub)
        writes = len(hub.writes)
        publish(next_version)
        after = files_at(hub)
        assert {name for name in after if after[name] != before.get(name)} == {"README.md", "model.safetensors"}
        assert sum(request.startswith("PUT") for request in hub.writes[writes:]) == 1

    def test_branch(self, candidate, hub):
        hub.put(REPO_ID, {"notes.md": b"x"})
        main = files_at(hub)
        publish(candidate, revision="next")
        assert files_at(hub) == main
        assert "model.safetensors" in files_at(hub, "next")

    def test_pull_request_is_opened_once(self, candidate, next_version, hub):
        main = publish(candidate)
        first = publish(next_version, create_pr=True)
        again = publish(next_version, create_pr=True)
        assert (first.sent, again.sent, again.commit) == (True, False, "refs/pr/1")
        assert first.url == again.url == f"{hub.endpoint}/{REPO_ID}/discussions/1"
        assert hub.repository(REPO_ID).head("main").id == main.commit
        assert list(hub.repository(REPO_ID).pull_requests) == ["refs/pr/1"]

    def test_pull_request_goes_on(self, candidate, next_version, hub):
        publish(candidate)
        hub.repository(REPO_ID).pull_requests["refs/pr/1"] = hub.repository(REPO_ID).head("main").id
        publish(next_version, revision="refs/pr/1")
        assert b"puns" in files_at(hub, "refs/pr/1")["README.md"]
        assert b"puns" not in files_at(hub)["README.md"]


# What the Hub does, how often, and what the maintainer reads.
FAILURES = {
    "401": (lambda hub: hub.fail(COMMIT, 401), "does not accept the token"),
    "403": (lambda hub: hub.fail(COMMIT, 403), "write permission"),
    "403 of the upload": (lambda hub: hub.fail(LARGE, 403), "write permission"),
    "409": (lambda hub: hub.fail(COMMIT, 409), "conflict"),
    "412": (lambda hub: hub.fail(COMMIT, 412), "someone else published there meanwhile"),
    "429": (lambda hub: hub.fail(COMMIT, 429, **{"Retry-After": "3600"}), "after 3600 seconds"),
    "429 by its own header": (lambda hub: hub.fail(COMMIT, 429, **{"RateLimit": '"api";r=0;t=900'}), "after 900 seconds"),
    "503 of the upload for a day": (lambda hub: hub.fail(LARGE, 503, **{"Retry-After": "86400"}), "after 86400 seconds"),
    "503 of the plan for a day": (
        lambda hub: hub.fail(r"POST .*/preupload/.*", 503, **{"Retry-After": "86400"}),
        "after 86400 seconds",
    ),
    "429 again and again": (lambda hub: hub.fail(COMMIT, 429, ALWAYS, **{"Retry-After": "2"}), "after 2 seconds"),
    "500": (lambda hub: hub.fail(COMMIT, 500), r"the Hub failed \(HTTP 500\)"),
    "500 of the upload": (lambda hub: hub.fail(LARGE, 500, ALWAYS), r"the Hub failed \(HTTP 500\)"),
    "500 of the plan for it": (lambda hub: hub.fail(r"POST .*/preupload/.*", 500, ALWAYS), r"the Hub failed \(HTTP 500\)"),
    "cut in the upload": (lambda hub: hub.cut(LARGE, ALWAYS), "connection to the Hub was lost"),
    "cut in the commit": (lambda hub: hub.cut(COMMIT), "connection to the Hub was lost"),
}


@dataclass
class Endless:
    """A body that comes in pieces, so many seconds apart."""

    piece: bytes
    seconds: float

    def __iter__(self) -> Iterator[bytes]:
        while True:
            yield self.piece
            threading.Event().wait(self.seconds)  # not `time.sleep`, which tests replace


def json_body(content: object) -> Callable[[], Response]:
    return lambda: Response(body=json.dumps(content).encode())


# Requests of the plan and of the upload.
ANSWERED = [r"GET .*/refs", r"GET .*/tree/.*", COMMIT]
FORM = "answer is not of its form"
MISBEHAVIOURS = {
    "no JSON": (lambda: Response(body=b"<html>Log in to this network</html>"), FORM),
    "nothing": (lambda: Response(body=b""), FORM),
    "no text": (lambda: Response(body=b"\xff\xfe\xff"), FORM),
    "nested": (lambda: Response(body=b"[" * 100_000), FORM),
    "a list": (json_body([[]]), FORM),
    "a number": (json_body(7), FORM),
    "null": (json_body(None), FORM),
    "other keys": (json_body({"branches": [{}]}), FORM),
    "endless": (lambda: Response(body=Endless(b" " * 1_000_000, 0)), "does not end"),
    "dripping": (lambda: Response(body=Endless(b" ", 0.05)), "comes too slowly"),
    "silent": (lambda: Response(body=Endless(b" ", 2)), "connection to the Hub was lost"),
    "in a circle": (lambda: Response(307, headers={"Location": "?again"}), "redirects in a circle"),
    "many lines": (lambda: Response(418, headers={"X-Error-Message": "\x1b[31mone\x85two" + "x" * 9000}), "refused .*one"),
}


class TestFailures:
    @pytest.mark.parametrize("how", slow_but_first(FAILURES, lambda how: [FAILURES[how][1]]))
    def test_last_good_commit_stays_and_the_same_again_resumes(
        self, how, candidate, next_version, hub, waits, capsys, caplog, checkpoint
    ):
        fail, words = FAILURES[how]
        good = publish(candidate)
        before, local = files_at(hub), fingerprint(checkpoint)
        fail(hub)
        with pytest.raises(PublishError, match=words) as failure:
            publish(next_version, tag="v2")
        assert "at its last good commit" in str(failure.value)
        assert "\n" not in str(failure.value)
        assert hub.repository(REPO_ID).head("main").id == good.commit
        assert files_at(hub) == before
        assert fingerprint(checkpoint) == local
        output = capsys.readouterr()
        for text in (str(failure.value), output.out, output.err, caplog.text):
            assert TOKEN not in text
            assert "presigned" not in text
        hub.faults.clear()
        assert publish(next_version, tag="v2").sent
        assert files_at(hub, "v2")["model.safetensors"] == next_version.files["model.safetensors"].read_bytes()

    @pytest.mark.parametrize(
        "case", slow_but_first(itertools.product(MISBEHAVIOURS, ANSWERED), lambda case: case[:1]), ids=str
    )
    def test_answers_that_are_none_end_in_one_line(self, case, candidate, hub, waits, monkeypatch):
        how, request_ = case
        monkeypatch.setattr(client, "_LONGEST_ANSWER", 0.2)
        monkeypatch.setattr(client, "_SILENCE", 0.2)
        monkeypatch.setattr(client, "_LARGEST_ANSWER", 1 << 20)
        monkeypatch.setattr(client, "_PAGES", 20)
        hub.put(REPO_ID, {"config.json": b'{"model_type": "inhibidistilbert"}'})
        response, words = MISBEHAVIOURS[how]
        hub.answer(request_, response(), ALWAYS)
        began = time.monotonic()
        with pytest.raises(PublishError, match=words) as failure, telling("Nothing was sent."):
            publish(candidate)
        assert time.monotonic() - began < 20
        assert "\n" not in str(failure.value)

    def test_wrong_token(self, candidate, hub, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", TOKEN + "Wrong")
        plan = Plan(Target(REPO_ID, ModelPublication()), Remote(exists=False), ())
        with pytest.raises(PublishError, match="does not accept the token") as failure:
            send(HfApi(), plan, candidate.files)
        assert TOKEN not in str(failure.value)
        assert hub.repositories == {}

    def test_a_short_wait_is_waited(self, candidate, hub, waits):
        hub.fail(COMMIT, 429, **{"Retry-After": "2"})
        assert publish(candidate).sent
        assert waits == [2.0]

    @pytest.mark.parametrize("request_", [COMMIT, LARGE, pytest.param(r"GET .*/refs", marks=pytest.mark.slow)])
    def test_the_hubs_own_limit_is_waited_for(self, request_, candidate, hub, waits, caplog):
        """A window of five minutes is nearly over; of an upload huggingface_hub waits itself, a second longer."""
        hub.fail(request_, 429, **{"RateLimit": '"api";r=0;t=299', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'})
        assert publish(candidate).sent
        assert waits == [300.0 if request_ == LARGE else 299.0]
        (message,) = [record.getMessage() for record in caplog.records if record.name == client.__name__]
        assert "wait 299 seconds" in message

    def test_one_cut_is_mended_by_itself(self, candidate, hub, waits):
        hub.cut(LARGE)
        assert publish(candidate).sent
        assert len(waits) == 1

    def test_new_repository_cut_off(self, candidate, hub, waits):
        hub.fail(COMMIT, 500)
        with pytest.raises(PublishError):
            publish(candidate)
        assert hub.repository(REPO_ID).private
        writes = len(hub.writes)
        assert publish(candidate).sent
        resumed = hub.writes[writes:]
        assert not [request for request in resumed if request.startswith("PUT") or "create" in request]
        writes = len(hub.writes)
        assert not publish(candidate).sent
        assert len(hub.writes) == writes

    def test_shards_that_arrived_are_not_sent_again(self, hub, waits, tmp_path):
        checkpoint = write_checkpoint(tmp_path / "sharded", max_shard_size="6KB")
        candidate = assembled(checkpoint, tmp_path / "assembled")
        shards = [name for name in candidate.files if name.endswith(".safetensors")]
        assert len(shards) > 1
        oid = hashlib.sha256(candidate.files[shards[-1]].read_bytes()).hexdigest()
        hub.fail(rf"PUT /lfs/{oid}", 500, ALWAYS)
        with pytest.raises(PublishError):
            publish(candidate)
        assert oid not in hub.large
        arrived = set(hub.large)
        hub.faults.clear()
        writes = len(hub.writes)
        publish(candidate)
        sent = {request.rpartition("/")[2] for request in hub.writes[writes:] if request.startswith("PUT")}
        assert oid in sent
        assert not sent & arrived

    def test_tag_that_failed_is_made_later(self, candidate, hub):
        hub.fail(r"POST .*/tag/.*", 500)
        with pytest.raises(PublishError, match=r"The files are on the Hub, at \w+; the tag is not made"):
            publish(candidate, tag="v1")
        writes = len(hub.writes)
        assert not publish(candidate, tag="v1").sent
        assert [request.split("/")[-2] for request in hub.writes[writes:]] == ["tag"]

    def test_two_publishers_at_once(self, candidate, next_version, hub):
        """The other one's commit comes between this one's upload and its commit."""
        publish(candidate)
        hub.before[COMMIT] = lambda: hub.put(REPO_ID, {"config.json": b'{"model_type": "inhibidistilbert"}'})
        with pytest.raises(PublishError, match="someone else published there meanwhile"):
            publish(next_version)
        assert files_at(hub)["config.json"] == b'{"model_type": "inhibidistilbert"}'
        assert b"puns" not in files_at(hub)["README.md"]
        assert states(plan_for(next_version))["config.json"] == "changed"
        assert publish(next_version).sent

    def test_both_plan_before_either_sends(self, candidate, next_version, hub):
        publish(candidate)
        mine = plan_for(next_version)
        theirs = hub.put(REPO_ID, {"notes.md": b"theirs"})
        with pytest.raises(PublishError, match="someone else"):
            send(HfApi(), mine, next_version.files)
        assert hub.repository(REPO_ID).head("main").id == theirs
