"""Optional packages, and what to say where they are missing."""

from collections.abc import Sequence
from importlib.util import find_spec

from .errors import UserError


def check_packages(packages: Sequence[str], argument: str, install: Sequence[str] = ()) -> None:
    """Raises `UserError` where a package that the argument needs is not installed.

    install: what pip installs for them, where that has other names.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UserError(f"{argument} needs {', '.join(missing)}: pip install {' '.join(install or packages)}")
