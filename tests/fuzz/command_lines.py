"""Command lines with something wrong in most of them, for every command and every option that the program has."""

import dataclasses
import os
from pathlib import Path
from random import Random
from typing import Any

import typer
from transformers import TrainingArguments

from inhibidistilbert.cli import app

from .judging import Trial
from .running import Case
from .spoilt_folders import copy


def words_of(text: str, *long: str) -> list[str]:
    """Words with a bar between, for some are blank; and others that are long."""
    return [*text.split("|"), *long]


NUMBERS = words_of(
    "0|1|2|-1|3.5|-0|nan|inf|-inf|1e400|1e-400|4294967296|2147483648|9223372036854775808|0x10|1_000|٣|1,5|+1"
    "| 1|1 |1e3|0.1|1e9|abc||--1",
    "9" * 30,
    "-" + "9" * 30,
    "1" * 5000,
)
# Right ones would train for hours.
EPOCHS = words_of("0|-1|nan|inf|-inf|1e400|abc||0.01|1|1e-300|-0|1,5")
TEXTS = words_of(
    "| |abc|\udcff\udcfe|a\udc80b|a\nb|\x1b[31mred|-|--|=|a=b|a,b|0,1|[1, 2]|{}|{|null|true|false|None"
    "|%s{}|{0}|$(id)|~|~gone|*|[bold]|日本語|\\|http://127.0.0.1:9/x|someone/gone|..|a/b/c|user@host|main|refs/pr/1|v1.0|train=|=data.csv|text|label|other"
    "|classification|regression|multi-label-classification|sst2|float16|int8|gate|least|passed|tiny|teacher|cuda|cuda:99|meta|cpu:1|mps"
    "|classifier|distill|finetune",
    "x" * 256,
    "x" * 5000,
    "👍" * 70,
    "é" * 128,
    "someone/" + "x" * 300,
)
PATHS = words_of(
    "model|source|data.csv|texts.txt|empty.csv|binary|pairs.jsonl|gone|gone/gone|data.csv/|data.csv/x|.|..|/proc|fifo|folder|link|loop"
    "|unreadable|model/config.json|model/|./model|/dev/null|/dev/zero|/dev/full|/dev/stdin|/dev/tty|/dev/fd/9|/proc/self/mem"
    "|/proc/self/cmdline|a\udcffb|a\nb|| |-|train=data.csv|test=gone|=|folder=data.csv|out.csv|out.jsonl|out.json|out"
    "|folder/out.csv|gone/out.csv|data.parquet|model.yaml",
    "x" * 255,
    "x" * 256,
    "x" * 4097,
    "é" * 128,
    "long/" + "x" * 300,
    "x" * 252 + ".csv",
)
SETTINGS = words_of(
    "task.max_steps|task.batch_size|task.learning_rate|task.temperature|task.max_length|task.warmup|task.schedule|task.epochs|task"
    "|task.hard_weight|task.weight_decay|task.dropout|task.gone|data.kind|data.labels|data.train_files|data.text_column|data"
    "|data.text_pair_column|data.label_column|student.config.n_layers|student.config.dim|student.source|student.layers|student"
    "|student.attention|teacher|seed|bf16|save_dtype|stages|trainer|gone|gone.x||."
)
VALUES = words_of(
    "1|0|-1|nan|inf|1e400|abc||true|false|null|[]|[1]|{}|{a: b}|[|'|\udcff|!!python/object:os.system {}|&a [*a]"
    "|2024-01-01|1e3|text|data.csv|[data.csv]|[gone]|epoch|steps|0x1F|~",
    "x" * 300,
)
ALL_TRAINER = sorted(field.name for field in dataclasses.fields(TrainingArguments))
# Right, and quick; what other commands want more than their arguments.
START: dict[str, tuple[str, ...]] = {
    "evaluate": ("--task", "classification", "--data", "data.csv"),
    "distill": ("--teacher", "source", "--train-file", "data.csv", "--set", "task.max_steps=1", "--student", "teacher"),
    "publish": ("--repo-id", "someone/tiny", "--dry-run"),
    "predict": ("--model", "model"),
}
ARGUMENTS = {
    "text": "a dull plot",
    "checkpoint": "model",
    "checkpoint_dir": "model",
    "source": "source",
    "output_dir": "made",
    "size": "tiny",
}


def commands() -> dict[str, Any]:
    """Every command of the program by its name, those of groups as well."""
    found: dict[str, Any] = {}

    def walk(command: Any, words: tuple[str, ...]) -> None:
        if hasattr(command, "commands"):
            for name, below in command.commands.items():
                walk(below, (*words, name))
        else:
            found[" ".join(words)] = command

    walk(typer.main.get_command(app), ())
    return found


COMMANDS = commands()


def write_inputs(originals: Path, folder: Path) -> None:
    """What the command lines name."""
    for name in ("own", "source"):
        copy(originals / name, folder / {"own": "model"}.get(name, name))
    for name in ("data.csv", "texts.txt", "pairs.jsonl"):
        os.link(originals / name, folder / name)
    (folder / "empty.csv").touch()
    (folder / "binary").write_bytes(bytes(range(256)) * 4)
    (folder / "folder").mkdir()
    (folder / "link").symlink_to("data.csv")
    (folder / "loop").symlink_to("loop")
    (folder / "unreadable").touch(0)
    os.mkfifo(folder / "fifo")


def value_for(random: Random, parameter: Any) -> str:
    """A value for an option or an argument: of its kind, or of another."""
    name, annotation = parameter.name, str(parameter.type_descriptor.annotation)
    if name == "set_":
        key = f"trainer.{random.choice(ALL_TRAINER)}" if random.random() < 0.6 else random.choice(SETTINGS)
        equals = "=" if random.random() < 0.95 else ""
        return f"{key}{equals}{random.choice(EPOCHS if 'epochs' in key else VALUES)}"
    if "epochs" in name:
        return random.choice(EPOCHS)
    kind = PATHS if "Path" in annotation else NUMBERS if "int" in annotation or "float" in annotation else TEXTS
    return random.choice(random.choice([kind, kind, kind, NUMBERS, TEXTS, PATHS]))


def misspelt(random: Random, word: str) -> str:
    place = random.randrange(len(word))
    shorter, longer = word[:place] + word[place + 1 :], f"{word[:place]}z{word[place:]}"
    return random.choice([shorter, longer, word.upper(), word.replace("-", "_"), f"{word}s"])


def made(seed: int, place: int, originals: Path, folder: Path) -> Trial:
    """The command line at a place of the list of this seed, with what it names in `folder`."""
    random = Random(f"line {seed} {place}")  # so that each can be made alone
    write_inputs(originals, folder)
    name = random.choices(list(COMMANDS), [1 if each.startswith("benchmark") else 8 for each in COMMANDS])[0]
    parameters = COMMANDS[name].params
    options = [each for each in parameters if each.opts[0].startswith("-") and "--help" not in each.opts]
    words = list(START.get(name, ()))
    for _ in range(random.choice([0, 1, 1, 1, 2, 2, 3])):
        option = random.choice(options)
        words.append(random.choice([*option.opts, *option.secondary_opts]))
        if not option.is_flag:
            words.append(value_for(random, option))
    for argument in parameters:
        if argument.opts[0].startswith("-"):
            continue
        given = ARGUMENTS.get(argument.name, "x") if random.random() < 0.8 else value_for(random, argument)
        if (argument.required and random.random() < 0.97) or random.random() < 0.5:
            words.insert(0, given)
    spoil(random, words, [opt for each in options for opt in each.opts])
    if name.startswith("benchmark"):  # it would measure for minutes
        words += ["--gone=1", "--gone=1"]  # an option before them may take one
    stdin = random.choice([os.devnull] * 6 + [None, "texts.txt", "binary", "fifo"])
    stdout = random.choice([""] * 8 + [None, "/dev/full"])
    arguments = (*name.split(), *words) if random.random() < 0.98 else (misspelt(random, name.split()[0]), *words)
    return Trial(name, Case(tuple(word.replace("\0", "") for word in arguments), stdin, stdout))


def spoil(random: Random, words: list[str], names: list[str]) -> None:
    """Now and then change the words themselves."""
    way = random.random()
    if way < 0.06 and words:
        del words[random.randrange(len(words))]
    elif way < 0.12 and words:
        words.insert(random.randrange(len(words) + 1), words[random.randrange(len(words))])
    elif way < 0.18:
        words.append(random.choice(names))
    elif way < 0.24:
        words.insert(random.randrange(len(words) + 1), misspelt(random, random.choice(names)))
    elif way < 0.30:
        words.append(random.choice([*TEXTS, *PATHS]))
    elif way < 0.34 and words:
        place = random.randrange(len(words))
        words[place] = random.choice([*TEXTS, *PATHS])
    elif way < 0.36:
        words.append(random.choice(["--help", "--version", "--install-completion=x", "-h", "-", "--"]))
    elif way < 0.37:
        words.extend(words * 40)
