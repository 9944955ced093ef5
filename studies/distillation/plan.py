"""What the distillation study compares: its tasks, its models, and the commands that make each row."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SEEDS = (0, 1, 2)
# The metric for texts of another length than those of the training. Such texts may move all scores of a model, teachers'
# too, across its threshold; accuracy would then hide what it still tells apart.
METRIC_ELSEWHERE = "roc_auc"
# Task and metric of the rows that tell what share of the variance of the teacher's attention output a student reproduces at
# the end of `align`, mean of the layers. The authors' stages aim at something else.
ALIGNMENT = ("alignment", "explained_variance")


@dataclass(frozen=True)
class Task:
    """A labelled task; its files are named after it.

    metric: in `distillation.json`, of the test files. epochs: of its students, if not those of the recipe. stages: of the
    encoders of its students, after those of the model. pair: its texts come in pairs.
    also_tested: `{task: file}`, more texts with the same labels that the same models are tested on, at `test_max_length`, by
    `METRIC_ELSEWHERE`.
    """

    name: str
    kind: str = "classification"
    metric: str = "accuracy"
    max_length: int | None = None
    test_max_length: int | None = None
    epochs: int | None = None
    stages: tuple[str, ...] = ()
    pair: bool = False
    also_tested: dict[str, str] = field(default_factory=dict)


TASKS = {
    task.name: task
    for task in (
        # The long reviews show how a model trained on sentences carries over: they fill the 512 positions.
        Task("rotten_tomatoes", test_max_length=512, also_tested={"imdb_long": "imdb_long_test.csv"}),
        Task("graded_sentiment", kind="regression", metric="pearson"),
        Task("sarcasm"),
        # Eight times the keys of a sentence: a mean over them is another, and an epoch takes two to three times as long.
        Task("imdb", max_length=256, epochs=2, stages=("pretrain_long",)),
        Task("next_sentence", pair=True),
        Task("word_sense", pair=True),
    )
}


@dataclass(frozen=True)
class Model:
    """A student: what differs from the study's inhibitor, whose form is the paper's.

    overrides: `KEY=VALUE` of the recipe, for every stage. stages: those before the task, in order; none for a student that
    starts as the encoder. by_authors: by the recipe of the inhibitor's authors instead of the study's.
    """

    name: str
    overrides: tuple[str, ...] = ()
    stages: tuple[str, ...] = ("align", "pretrain")
    by_authors: bool = False


_GATE = (
    *("student.config.inhibition=gate", "student.config.center=least"),
    *("student.config.length_normalization=passed", "student.config.beta_init=1"),
)
# Models of every task that are compared with one another.
CONTROLS, STUDENTS = ("softmax", "softmax_aligned"), ("gate", "inhibitor")
# Alignment and pretraining make a student like the encoder. The softmax control starts as a copy of it and needs neither.
_COMPARED = (Model("gate", _GATE), Model("softmax", ("student.attention=softmax",), stages=()), Model("inhibitor"))
# A second control that goes through these stages all the same, whatever they do to it.
_SAME_STAGES = Model("softmax_aligned", ("student.attention=softmax",))
_ABLATIONS = (
    Model("gate_two_radii", (*_GATE[:-1], "student.config.radii=2", "student.config.beta_init=[1,1.5]")),
    # One part of the gate's form taken away.
    Model("gate_threshold", (*_GATE, "student.config.inhibition=threshold")),
    Model("gate_from_mean", (*_GATE, "student.config.center=mean")),
    Model("gate_length_mean", (*_GATE, "student.config.length_normalization=mean", "student.config.beta_init=1.5")),
    Model("inhibitor_authors_recipe", stages=("align_queries_keys", "align_layers", "pretrain"), by_authors=True),
)


@dataclass(frozen=True)
class Settings:
    """Where things are, and by what they are trained.

    recipe, authors_recipe: names or files. encoder: what teachers are fine-tuned from. texts: unlabelled, for all stages
    before the task. data: the folder of the tasks' files. work: where models are kept.
    """

    recipe: str
    authors_recipe: str
    encoder: str
    texts: str
    data: Path
    work: Path


@dataclass(frozen=True)
class Command:
    """A call of `inhibidistilbert distill` that writes `output`, once those in `needs` have written theirs."""

    output: Path
    arguments: tuple[str, ...]
    needs: tuple["Command", ...] = ()

    @property
    def line(self) -> tuple[str, ...]:
        return ("inhibidistilbert", "distill", str(self.output), *self.arguments)


@dataclass(frozen=True)
class Run:
    """A model tested on a task: the command that ends with its results."""

    task: Task
    model: str
    seed: int
    command: Command

    @property
    def name(self) -> str:
        return f"{self.task.name}/{self.model}/{self.seed}"


def plan(settings: Settings) -> Iterator[Run]:
    """All runs, the most telling first: one seed, the ablations, the other seeds, the second control."""
    rotten_tomatoes = TASKS["rotten_tomatoes"]
    first, *others = SEEDS
    yield from (run for task in TASKS.values() for run in _comparison(settings, task, first))
    yield from (_student(settings, rotten_tomatoes, model, first) for model in _ABLATIONS)
    yield from (run for seed in others for task in TASKS.values() for run in _comparison(settings, task, seed))
    yield from (_student(settings, task, _SAME_STAGES, seed) for seed in SEEDS for task in TASKS.values())


def _comparison(settings: Settings, task: Task, seed: int) -> Iterator[Run]:
    yield Run(task, "teacher", seed, _teacher(settings, task, seed))
    yield from (_student(settings, task, model, seed) for model in _COMPARED)


def _teacher(settings: Settings, task: Task, seed: int) -> Command:
    return Command(
        settings.work / f"{task.name}-teacher-{seed}",
        (
            *_stage(settings.recipe, "finetune", seed),
            *("--student", settings.encoder, "--set", "student.attention=softmax"),
            *_task_arguments(settings, task, "finetune"),
        ),
    )


def _student(settings: Settings, task: Task, model: Model, seed: int) -> Run:
    recipe = _recipe(settings, model)
    encoder = _encoder(settings, task, model, seed)
    teacher = _teacher(settings, task, seed)
    command = Command(
        settings.work / f"{task.name}-{model.name}-{seed}",
        (
            *_stage(recipe, "task", seed),
            *("--teacher", str(teacher.output), "--student", str(encoder.output) if encoder else settings.encoder),
            *_overrides(model.overrides),
            # The authors' students learn their task from nothing.
            *(() if model.by_authors else ("--set", f"task.teacher_base={settings.encoder}")),
            *(() if task.epochs is None else ("--set", f"task.epochs={task.epochs}")),
            *_task_arguments(settings, task, "task"),
        ),
        needs=(encoder, teacher) if encoder else (teacher,),
    )
    return Run(task, model.name, seed, command)


def _encoder(settings: Settings, task: Task, model: Model, seed: int) -> Command | None:
    """The last of the stages before the task, each from the one before; None for a model without any."""
    recipe = _recipe(settings, model)
    command = None
    for stage in (*model.stages, *task.stages) if model.stages else ():
        source = () if command is None else ("--student", str(command.output))
        command = Command(
            settings.work / f"{stage}-{model.name}-{seed}",
            (
                *_stage(recipe, stage, seed),
                *("--teacher", settings.encoder, *source, *_overrides(model.overrides), "--text-file", settings.texts),
            ),
            needs=() if command is None else (command,),
        )
    return command


def _recipe(settings: Settings, model: Model) -> str:
    return settings.authors_recipe if model.by_authors else settings.recipe


def _stage(recipe: str, stage: str, seed: int) -> tuple[str, ...]:
    return ("--recipe", recipe, "--stage", stage, "--seed", str(seed))


def _overrides(overrides: tuple[str, ...]) -> Iterator[str]:
    for override in overrides:
        yield from ("--set", override)


def _task_arguments(settings: Settings, task: Task, stage: str) -> Iterator[str]:
    if task.kind != "classification":
        yield from ("--set", f"data.kind={task.kind}")
    if task.pair:
        yield from ("--set", "data.text_pair_column=text_pair")
    if task.max_length is not None:
        yield from ("--set", f"{stage}.max_length={task.max_length}")
    if task.test_max_length is not None:
        yield from ("--set", f"data.test_max_length={task.test_max_length}")
    yield from ("--train-file", str(settings.data / f"{task.name}_train.csv"))
    yield from ("--eval-file", str(settings.data / f"{task.name}_validation.csv"))
    for file in test_files(settings, task).values():
        yield from ("--test-file", file)


def test_files(settings: Settings, task: Task) -> dict[str, str]:
    """`{task: file}` of what models of `task` are tested on."""
    names = {task.name: f"{task.name}_test.csv"} | task.also_tested
    return {name: str(settings.data / file) for name, file in names.items()}
