"""`inhibidistilbert explain`: what a classifier did to a text, as a page, a picture and JSON."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from .output import DeviceOption, new_table, print_table

_SHOWN, _LETTERS = 12, 60  # words with their effects, and letters of each; the files have all


def explain(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The text to explain.")],
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="A checkpoint folder; only data in it is read. Left out: the sentiment model shipped."
        ),
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="NAME", help="The class to explain.", show_default="the one predicted")
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(metavar="N", help="Layer whose inhibition is shown, from 0.", show_default="the last"),
    ] = None,
    head: Annotated[int, typer.Option(metavar="N", help="Head whose inhibition is shown, from 0.")] = 0,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write explanation.html, explanation.png and explanation.json there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the explanation as one JSON object.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Tell what a classifier did to a text: the effect of each word on the answer, and which words inhibit which.

    The effects are integrated gradients, which need Captum (pip install "captum>=0.9"). A curve tells whether to trust them:
    how soon the answer changes while the words are hidden by their effect, against random order. Which words inhibit which
    is shown for one layer and head, counted from 0 as in the attentions of transformers. A text longer than the model's
    positions is cut.
    """
    from ..explanation import explain as explain_text
    from ..explanation.result import signed
    from ..support.files import prepare_output
    from .predict import note

    prepare_output(output)
    explanation = explain_text(text, model, label=label, layer=layer, head=head, device=device)
    paths = explanation.save(output) if output is not None else []
    if as_json:
        print(json.dumps(explanation.to_dict()))
    else:
        print(explanation.answer())
        table = new_table(["word"], ["effect"])
        for word, effect in explanation.ranked()[:_SHOWN]:
            shown = "".join(letter for letter in word if letter.isprintable())
            table.add_row(Text(shown[:_LETTERS]), signed(effect))
        print_table(table)
        if (more := len(explanation.words) - _SHOWN) > 0:
            print(f"{more} more words have smaller effects.")
        print(explanation.total())
        print(explanation.deletion_told())
    for warning in explanation.warnings():
        note(warning)
    for path in paths:
        note(f"written: {path}")
