"""`inhibidistilbert publish`: a checkpoint, or the kernel, to the Hugging Face Hub, or a look at what is there."""

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from ..support.errors import UserError


def publish(
    checkpoint_dir: Annotated[Path | None, typer.Argument(help="Folder written by save_pretrained or `distill`.")] = None,
    repo_id: Annotated[str | None, typer.Option(metavar="ORG/NAME", help="Where to publish.")] = None,
    kernel: Annotated[bool, typer.Option("--kernel", help="Publish, or verify, the operator as a Hub kernel.")] = False,
    verify: Annotated[
        str | None, typer.Option(metavar="ORG/NAME[@REV]", help="Check what is on the Hub already; send nothing.")
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="With --verify: run the code found there, without token and home; no sandbox."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and show the plan; send nothing.")] = False,
    init_card: Annotated[
        bool, typer.Option("--init-card", help="Write a README.md to fill in into CHECKPOINT_DIR; do no more.")
    ] = False,
    private: Annotated[
        bool, typer.Option("--private/--public", help="Visibility of a new repository; an existing one keeps its own.")
    ] = True,
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="BRANCH|refs/pr/N", help="Made when it is missing.", show_default="main; a kernel's is v<version>"
        ),
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request against --revision.")] = False,
    tag: Annotated[str | None, typer.Option(help="Tag the commit; the card's examples are pinned to it.")] = None,
    commit_message: Annotated[str, typer.Option()] = "Publish with inhibidistilbert",
    collection: Annotated[str | None, typer.Option(metavar="SLUG", help="Collection that the repository joins.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before sending.")] = False,
) -> None:
    """Take a checkpoint to the Hub, once every check has passed; then load it from there.

    The folder is only read: what belongs on the Hub is assembled in a temporary one, with the source files of this version
    and a card rendered from the configuration and the files of results. Licence, base model, data, limits, terms and
    sections of your own come from the folder's README.md, which --init-card begins.

    --verify looks at data alone: source files are compared with those of known releases, weights are loaded by this
    package's own classes, and compared with those in CHECKPOINT_DIR where one is given.

    Exit code 1: a check failed, or the Hub refused. The same command again sends what is missing.
    """
    if init_card:
        if checkpoint_dir is None or kernel or verify is not None:
            raise UserError("--init-card needs CHECKPOINT_DIR, and goes with neither --kernel nor --verify.")
        from ..publishing import card

        print(f"Fill in {card.init_card(checkpoint_dir)}, then give --dry-run in place of --init-card.")
        return
    if verify is None and repo_id is None:
        raise UserError("--repo-id is missing: give organisation/name.")
    if verify is None and trust_remote_code:
        raise UserError("--trust-remote-code goes with --verify: what is published has this package's own code.")
    may_ask = dry_run or yes or (sys.stdin.isatty() and not as_json)
    if verify is None:
        check_repo_id("--repo-id", str(repo_id))
    else:
        check_repo_id("--verify", verify.partition("@")[0])

    from huggingface_hub import get_token

    from ..publishing.errors import PublishError
    from ..publishing.kernel import KernelPublication
    from ..publishing.model import ModelPublication
    from ..publishing.plan import Target
    from ..publishing.publication import Publication
    from ..publishing.secrets import redact
    from . import publish_steps as steps

    report = steps.Report(as_json)
    publication: Publication = KernelPublication(checkpoint_dir) if kernel else ModelPublication(checkpoint_dir)
    try:
        if verify is not None:
            steps.look(report, verify, publication, trust_remote_code)
            return
        publication.check_arguments()
        if not may_ask:
            raise UserError("there is nobody to ask before sending: give --yes, or --dry-run to see the plan.")
        branch = revision or publication.branch()
        target = Target(str(repo_id), publication, branch, private, create_pr, tag, collection, commit_message)
        with tempfile.TemporaryDirectory(prefix="inhibidistilbert-") as folder:
            steps.bring(report, target, Path(folder, "assembled"), dry_run, yes)
    except PublishError as error:
        report.finish()
        print(f"error: {redact(str(error), get_token())}", file=sys.stderr)
        raise typer.Exit(1) from None
    except UserError as error:
        raise UserError(redact(str(error), get_token())) from None


def check_repo_id(argument: str, repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    with contextlib.suppress(HFValidationError):
        validate_repo_id(repo_id)
        if "/" in repo_id:
            return
    raise UserError(f"{argument} must be organisation/name, got {repo_id!r}.")
