"""The distillation study in tables: what each task costs a student, and what each part of the inhibitor is for."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from .plan import ALIGNMENT, CONTROLS, STUDENTS, TASKS

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


def _gaps(scores: dict[tuple[str, str], dict[int, float]], task: str, control: str, student: str) -> list[float]:
    """`control` minus `student`, for each seed that has both."""
    first, second = scores.get((task, control), {}), scores.get((task, student), {})
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]


def _scores_table(scores: dict[tuple[str, str], dict[int, float]]) -> str:
    models = ("teacher", *CONTROLS, *STUDENTS)
    rows = [
        [name, task.metric, *(_spread(list(scores.get((name, model), {}).values())) for model in models)]
        for name, task in TASKS.items()
    ]
    return _table(("task", "metric", *models), rows)


def _gaps_table(scores: dict[tuple[str, str], dict[int, float]], student: str) -> str:
    """Of the tasks, their means, and that of the tasks of single texts, which the paper's form was studied with first."""
    gaps = {(name, control): _gaps(scores, name, control, student) for name in TASKS for control in CONTROLS}
    rows = [
        [name, *(cell for control in CONTROLS for cell in (_spread(gaps[name, control]), str(len(gaps[name, control]))))]
        for name in TASKS
    ]
    for label, names in (("mean of single texts", [name for name in TASKS if not TASKS[name].pair]), ("mean", list(TASKS))):
        cells = []
        for control in CONTROLS:
            means = [mean(gaps[name, control]) for name in names if gaps[name, control]]
            cells += [f"{mean(means):.1f}" if means else "–", f"{len(means)} of {len(names)} tasks"]
        rows.append([label, *cells])
    head = [cell for control in CONTROLS for cell in (f"{control} − {student}", "seeds")]
    return _table(("task", *head), rows)


def _ablations(scores: dict[tuple[str, str], dict[int, float]]) -> str:
    tasks = ("rotten_tomatoes", *TASKS["rotten_tomatoes"].also_tested, ALIGNMENT[0])
    models = sorted({model for task, model in scores if task in tasks}, key=lambda name: (name.count("_"), name))
    rows = []
    for model in models:
        values = [scores.get((task, model), {}) for task in tasks]
        # One seed, since the ablations have one.
        rows.append([model, *(f"{value[0]:.1f}" if 0 in value else "–" for value in values)])
    return _table(("model", *tasks), rows)


def summary(rows: Sequence[Row]) -> str:
    """Markdown. Gaps are those of the seeds that both models have; ± is the deviation between seeds."""
    scores = _scores(rows)
    gaps = "".join(
        f"{_gaps_table(scores, student)}\n" for student in STUDENTS if any(model == student for _, model in scores)
    )
    return (
        "# Distillation study\n\nTest scores, accuracy in % or 100 × Pearson correlation; mean ± deviation between seeds. "
        "`gate` is the form beyond the paper, `inhibitor` the paper's. Both controls keep softmax attention. The control "
        "`softmax` starts as a copy of the encoder and learns the task alone. The control `softmax_aligned` goes through "
        "alignment and pretraining too, like the inhibitors.\n\n"
        f"{_scores_table(scores)}\n"
        f"Gaps in points, a control − a student, of the seeds that have both.\n\n{gaps}"
        "Models trained on Rotten Tomatoes sentences, seed 0, tested on such sentences (accuracy) and on IMDB reviews of "
        "250 words or more, cut at 512 tokens (area under the ROC curve in %; 50 is chance). `alignment`: how much of the "
        "variance of the encoder's attention output their layers reproduce after that stage (%, mean of the layers).\n\n"
        f"{_ablations(scores)}"
    )
