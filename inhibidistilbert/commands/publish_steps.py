"""The steps of `inhibidistilbert publish`, and what it says of them."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import typer
from huggingface_hub import HfApi, get_token
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape

from ..publishing.assemble import Candidate
from ..publishing.card import CARD
from ..publishing.checks import Check, CheckResult, run_checks
from ..publishing.errors import PublishError, Unreachable
from ..publishing.plan import Plan, Target, blind_plan, make_plan, metadata_refusals
from ..publishing.publication import Publication
from ..publishing.secrets import redact
from ..publishing.upload import Published, send, telling
from ..publishing.verify import sent_completely, verify_repository
from ..support.errors import UserError
from .output import new_table


def bring(report: "Report", target: Target, folder: Path, dry_run: bool, yes: bool) -> None:
    """Assemble, check, plan, ask, send and verify."""
    api, publication = HfApi(), target.publication
    with asking(dry_run):
        log_in(api, dry_run)
    candidate = publication.assemble(folder, target.repo_id, target.tag)
    plan, reached = blind_plan(target, candidate.files), False
    with asking(dry_run):
        plan, reached = make_plan(api, target, candidate.files), True
    remote: dict[str, Check] = {"remote": lambda _: iter(plan.refusals)} if reached else {}
    checks = run_checks(candidate, remote | publication.checks)
    if reached and all(check.passed for check in checks):
        # Only now, when it holds no secret.
        with telling("Nothing was sent."):
            ask_hub: Check = partial(metadata_refusals, api, repo_type=publication.repo_type)
            checks += run_checks(candidate, {"validate-yaml": ask_hub})
    if all(check.passed for check in checks):
        checks += run_checks(candidate, {"loading": publication.check_loading})
    report.show_verdict(checks)
    report.show_checks(checks)
    report.show_plan(plan, candidate)
    if not reached:
        report.note(
            "hub", "not asked", "The Hub was not reached: what is there, and whether it takes the metadata, is not known."
        )
    stop_unless_passed(checks, "Nothing was sent.")
    if dry_run:
        report.finish()
        return
    if not yes and not typer.confirm(f"Send {len(plan.changes)} changes to {target.repo_id}?", err=True):
        raise PublishError("stopped as asked. Nothing was sent.")
    published = send(api, plan, candidate.files)
    report.show_published(published, target, candidate)
    verify_sent(report, api, candidate, target, published)
    report.finish()


@contextlib.contextmanager
def asking(dry_run: bool) -> Iterator[None]:
    """A request before anything is sent; in a dry run it may get no answer."""
    try:
        with telling("Nothing was sent."):
            yield
    except Unreachable:
        if not dry_run:
            raise


def log_in(api: HfApi, dry_run: bool) -> None:
    """Ask the Hub whether it knows the token; a plan for a public repository needs none."""
    if get_token() is not None:
        api.whoami()
    elif not dry_run:
        raise UserError("there is no token: log in with `hf auth login`, or set HF_TOKEN.")


def stop_unless_passed(checks: Sequence[CheckResult], state: str) -> None:
    failed = [check.name for check in checks if not check.passed]
    if failed:
        raise PublishError(f"failed checks: {', '.join(failed)}. {state}")


def verify_sent(report: "Report", api: HfApi, candidate: Candidate, target: Target, published: Published) -> None:
    with telling(f"It is on the Hub, at {published.commit}, but was not verified; try --verify."):
        checks = sent_completely(api, target.publication, candidate, target.repo_id, published.commit)
    report.show_checks(checks, "verified")
    stop_unless_passed(checks, f"It is on the Hub, at {published.commit}.")


def look(report: "Report", verify: str, publication: Publication, run_code: bool) -> None:
    """`--verify`: download and check what is there; run its code where that was asked for."""
    repo_id, _, revision = verify.partition("@")
    api = HfApi()
    with telling("Nothing was verified."):
        commit = api.repo_info(repo_id, revision=revision or None, repo_type=publication.repo_type).sha or revision
        seen = verify_repository(api, publication, repo_id, commit, run_code)
    report.note("commit", commit, f"{repo_id} at {commit}")
    report.show_checks(seen.checks)
    if run_code:
        lines = [printable(f"foreign code: {problem.file} {problem.what}") for problem in seen.foreign]
        foreign = {problem.file: problem.what for problem in seen.foreign}
        report.note("foreign_code", foreign, "\n".join(lines or ["its code is this package's own"]))
    stop_unless_passed(seen.checks, "Nothing was changed.")
    # Only now: whoever follows these lines runs the code.
    report.show_usage(seen.usage)
    report.finish()


def printable(text: str) -> str:
    """On one line, without the control characters that a stranger's file names and messages may hold."""
    return "".join(character if character.isprintable() else "?" for character in text)


class Report:
    """What the command says: tables for people as they come, or one JSON object at the end."""

    def __init__(self, as_json: bool):
        self._json: dict[str, Any] | None = {} if as_json else None
        self._console = Console(highlight=False, soft_wrap=True)

    def note(self, name: str, value: Any, text: str) -> None:
        """One fact, and the line that people see."""
        if self._json is None:
            self._console.print(escape(text))
        else:
            self._json[name] = value

    def show_plan(self, plan: Plan, candidate: Candidate) -> None:
        target, remote = plan.target, plan.remote
        state = "exists" if remote.exists else f"new, {'private' if target.private else 'public'}"
        wanted = f"a pull request to {target.revision}" if target.create_pr else target.revision
        self.note("repo_id", target.repo_id, f"{target.publication.repo_type} {target.repo_id} ({state}), {wanted}")
        self.note("revision", target.revision, f"on top of {remote.head or remote.main or 'nothing'}")
        # It is shown before it is known to be free of secrets.
        token = get_token()
        card = redact((candidate.folder / CARD).read_text(encoding="utf-8"), token)
        both = (candidate.left_out, candidate.left_out_sections)
        left_out, sections = ([redact(name, token) for name in names] for names in both)
        if self._json is not None:
            self._json |= {"parent": remote.head, "left_out": left_out, "left_out_sections": sections, "card": card}
            self._json["files"] = [dataclasses.asdict(file) | {"path": redact(file.path, token)} for file in plan.files]
            return
        table = new_table(("file",), ("size",))
        table.add_column("on the Hub")
        for file in plan.files:
            table.add_row(escape(redact(file.path, token)), decimal(file.size), file.state)
        self._console.print(table)
        for what, names in (("files not published", left_out), (f"sections of {CARD} not published", sections)):
            if names:
                self._console.print(escape(f"{what}: {', '.join(names)}"))
        self._console.rule(CARD)
        self._console.print(card, markup=False)
        self._console.rule()

    def show_verdict(self, checks: Sequence[CheckResult]) -> None:
        """The first line for people: what follows is long."""
        failed = [check.name for check in checks if not check.passed]
        if self._json is None:
            self._console.print(f"FAILED: {', '.join(failed)}" if failed else f"ready: all {len(checks)} checks passed")

    def show_checks(self, checks: Sequence[CheckResult], name: str = "checks") -> None:
        if self._json is not None:
            self._json[name] = [
                {"name": check.name, "passed": check.passed, "problems": [dataclasses.asdict(p) for p in check.problems]}
                for check in checks
            ]
            return
        for check in checks:
            self._console.print(f"{'[green]passed[/green]' if check.passed else '[red]FAILED[/red]'}  {check.name}")
            for problem in check.problems:
                self._console.print(escape(printable(f"        {problem.file}: {problem.what}; {problem.remedy}.")))

    def show_published(self, published: Published, target: Target, candidate: Candidate) -> None:
        self.note("commit", published.commit, f"{'sent' if published.sent else 'nothing to send'}: {published.commit}")
        self.note("sent", published.sent, published.url)
        if self._json is not None:
            self._json["url"] = published.url
        self.show_usage(target.publication.usage(candidate, target.repo_id, target.tag or published.commit))

    def show_usage(self, lines: Sequence[str]) -> None:
        self.note("usage", list(lines), "\n".join(("", *lines, "")))

    def finish(self) -> None:
        if self._json is not None:
            print(json.dumps(self._json))
            self._json = {}
