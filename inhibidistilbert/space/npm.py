"""The npm packages of the page, as the lock file pins them."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ..support.errors import UserError

LOCKED = ("package.json", "package-lock.json")


@contextmanager
def npm_packages(folder: Path) -> Iterator[Path]:
    """`node_modules` of the lock file in `folder`, in a folder that goes away; no script of a package runs.

    Raises:
        UserError: npm is not installed, or did not get the packages.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("the page needs npm, which gets onnxruntime-web: install Node.js, which brings it.")
    with TemporaryDirectory(prefix="inhibidistilbert-") as name:
        for file in LOCKED:
            shutil.copyfile(folder / file, Path(name, file))
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        done = subprocess.run(command, cwd=name, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            said = " ".join((done.stderr or done.stdout).split()) or "it said nothing"
            raise UserError(f"npm did not get the packages of the page: {said[:300]}")
        yield Path(name, "node_modules")
