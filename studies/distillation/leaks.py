"""No held-out text in what a model is trained on: texts compared by their letters and digits alone."""

import html
import re
from collections.abc import Iterable, Mapping

from inhibidistilbert.support.errors import UserError


def normalized(text: str) -> str:
    """The letters and digits of a text, entities resolved, in lower case: the same for a text in other dress."""
    return re.sub(r"[^a-z0-9]", "", html.unescape(text).lower())


def check_no_leaks(training: Mapping[str, Iterable[str]], held_out: Mapping[str, Iterable[str]]) -> None:
    """Compare every training text with every held-out one. Both: texts by the name of their file.

    Texts without a letter or digit say nothing and are passed over.

    Raises:
        UserError: a text is in both; the message names the files, how many there are and the first of them.
    """
    names = {normalized(text): name for name, texts in held_out.items() for text in texts}
    names.pop("", None)
    for name, texts in training.items():
        leaked = [text for text in texts if normalized(text) in names]
        if leaked:
            raise UserError(
                f"{name} is for training, but {len(leaked)} of its texts are held out; "
                f"the first is in {names[normalized(leaked[0])]}: {leaked[0]!r}."
            )
