"""Which modules transformers has loaded from checkpoint folders, in this process and by whatever test."""

import sys


def code_of_folders() -> set[str]:
    return {name for name in sys.modules if name.startswith("transformers_modules")}
