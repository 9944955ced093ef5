"""What the outputs of a model's head mean: the kind of problem, and the names of the classes."""

import re
from collections.abc import Sequence
from operator import eq
from typing import Any, Final, Literal

ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]
REGRESSION: Final = "regression"
SINGLE_LABEL: Final = "single_label_classification"
MULTI_LABEL: Final = "multi_label_classification"
THRESHOLD = 0.5  # the probability from which on a multi-label classifier's label is given
_KINDS = {
    REGRESSION: "a regression",
    SINGLE_LABEL: "a classifier that gives one class",
    MULTI_LABEL: "a multi-label classifier",
}
# Those that load into each other without a word, where a layer of the one has the name and the shape of the other's.
_TASK_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")


def problem_of(config: Any) -> ProblemType:
    """The problem type of a sequence classifier.

    Where its configuration says none, one output means a number and several mean one class, as in transformers' losses.
    """
    return config.problem_type or (REGRESSION if config.num_labels == 1 else SINGLE_LABEL)


def describe_problem(config: Any) -> str:
    """`"a multi-label classifier (problem_type 'multi_label_classification', 3 outputs)"`."""
    said = f"problem_type {config.problem_type!r}" if config.problem_type else "no problem_type"
    return f"{_KINDS[problem_of(config)]} ({said}, {config.num_labels} output{'s' if config.num_labels != 1 else ''})"


def fits_problem(config: Any, problem: str) -> bool:
    """Whether the outputs of a sequence classifier may be taken for `problem`.

    One without a problem type may also be a multi-label classifier: nothing in a configuration tells it from others.
    """
    return problem_of(config) == problem or (config.problem_type is None and problem == MULTI_LABEL)


def has_its_outputs(config: Any) -> bool:
    """Whether there are as many outputs as the problem type allows: one number, or two or more classes to choose from."""
    outputs = config.num_labels
    return {REGRESSION: outputs == 1, SINGLE_LABEL: outputs > 1, MULTI_LABEL: outputs > 0}[problem_of(config)]


def other_head(config: Any, head: str) -> str | None:
    """The class that a configuration names, where it has another task's head than `head`; None where it may fit."""
    named = [str(name) for name in getattr(config, "architectures", None) or ()]
    others = [name for name in named if any(other in name for other in _TASK_HEADS if other != head)]
    return others[0] if others and len(others) == len(named) else None


def class_names(config: Any) -> list[str]:
    """In the order of the outputs."""
    return [str(name) for _, name in sorted((config.id2label or {}).items())]


def _plain(names: Sequence[str]) -> list[str]:
    return [re.sub(r"[\s_-]", "", name.casefold()) for name in names]


def are_numbers(names: Sequence[str]) -> bool:
    """Whether the names say no more than the places of the outputs: LABEL_0, LABEL_1, …"""
    return all(name in (str(place), f"label{place}") for place, name in enumerate(_plain(names)))


def _abbreviates(one: str, other: str) -> bool:
    """As "neg" does "negative"."""
    return min(len(one), len(other)) >= 3 and (one.startswith(other) or other.startswith(one))


def output_order(names: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """The output for each of the classes `wanted`, of a model that calls its outputs `names`.

    By name where both have the same, whatever their case, or one abbreviates the other; by place where either has no names
    but numbers. None where the names say something else.
    """
    by_place = list(range(len(names)))
    if are_numbers(names) or are_numbers(wanted):
        return by_place
    ours, theirs = _plain(names), _plain(wanted)
    shared = min(len(ours), len(theirs))
    if ours[:shared] == theirs[:shared]:
        return by_place
    for match in (eq, _abbreviates):
        found = [[place for place, name in enumerate(ours) if match(name, class_)] for class_ in theirs]
        if all(len(places) == 1 for places in found) and len({places[0] for places in found}) == len(names):
            return [places[0] for places in found]
    return None


def is_renaming(names: Sequence[str], new: Sequence[str]) -> bool:
    """Whether outputs `names` may be called `new`: no new name is that of another output."""
    order = output_order(names, new)
    if order is not None:
        return order == list(range(len(names)))
    ours = _plain(names)
    return not any(name in ours and ours.index(name) != place for place, name in enumerate(_plain(new)))
