"""The distillation study in two tables: what each task costs a student, and what each part of the inhibitor is for."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from .study_plan import TASKS

Row = Mapping[str, Any]
_POINTS = 100  # accuracy and correlation are reported in hundredths


def _scores(rows: Iterable[Row]) -> dict[tuple[str, str], dict[int, float]]:
    """Test scores in points by seed, by `(task, model)`."""
    scores: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        if not row["metric"].startswith("validation_"):
            scores.setdefault((row["task"], row["model"]), {})[row["seed"]] = _POINTS * row["value"]
    return scores


def _spread(values: Sequence[float]) -> str:
    """Mean and sample deviation, where there are two values or more."""
    if not values:
        return "–"
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _gaps(scores: dict[tuple[str, str], dict[int, float]], task: str, model: str) -> list[float]:
    """Softmax control minus `model`, for each seed that has both."""
    control, other = scores.get((task, "softmax"), {}), scores.get((task, model), {})
    return [control[seed] - other[seed] for seed in sorted(control.keys() & other.keys())]


def _comparison(scores: dict[tuple[str, str], dict[int, float]]) -> str:
    models = ("teacher", "softmax", "inhibitor")
    rows, means = [], []
    for name, task in TASKS.items():
        values = [list(scores.get((name, model), {}).values()) for model in models]
        gaps = _gaps(scores, name, "inhibitor")
        if gaps:
            means.append(mean(gaps))
        seeds = str(len(gaps))
        rows.append([name, task.metric, *map(_spread, values), _spread(gaps), seeds])
    last = f"{mean(means):.1f}" if means else "–"
    rows.append([f"mean of {len(means)} of {len(TASKS)} tasks", "", "", "", "", last, ""])
    return _table(("task", "metric", *models, "gap, points", "seeds"), rows)


def _ablations(scores: dict[tuple[str, str], dict[int, float]]) -> str:
    tasks = ("rotten_tomatoes", *TASKS["rotten_tomatoes"].also_tested)
    models = sorted({model for task, model in scores if task in tasks}, key=lambda name: (name.count("_"), name))
    rows = []
    for model in models:
        values = [scores.get((task, model), {}) for task in tasks]
        # One seed, since the ablations have one.
        rows.append([model, *(f"{value[0]:.1f}" if 0 in value else "–" for value in values)])
    return _table(("model", *tasks), rows)


def summary(rows: Sequence[Row]) -> str:
    """Markdown. Gap: softmax control minus inhibitor, of the seeds that both have; ± is the deviation between seeds."""
    scores = _scores(rows)
    return (
        "# Distillation study\n\nTest scores, accuracy in % or 100 × Pearson correlation; mean ± deviation between seeds. "
        "Gap: softmax control − inhibitor.\n\n"
        f"{_comparison(scores)}\n"
        "Models trained on Rotten Tomatoes sentences, seed 0, tested on such sentences (accuracy) and on IMDB reviews of "
        f"250 words or more, cut at 512 tokens (area under the ROC curve in %; 50 is chance):\n\n{_ablations(scores)}"
    )
