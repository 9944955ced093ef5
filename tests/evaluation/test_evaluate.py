"""`inhibidistilbert evaluate`: GLUE's tasks from local files, fine-tuning, comparisons, and the files it writes."""

import csv
import errno
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sklearn_metrics
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from inhibidistilbert import cli
from inhibidistilbert.evaluation import results as evaluation_results
from inhibidistilbert.evaluation import scoring
from inhibidistilbert.evaluation.checkpoint import load_checkpoint
from inhibidistilbert.evaluation.loading import load_split, parse_data
from inhibidistilbert.evaluation.metrics import F1, Accuracy, MatthewsCorrelation
from inhibidistilbert.evaluation.scoring import Scored, compare
from inhibidistilbert.evaluation.tasks import GLUE, TASKS, find_task
from inhibidistilbert.publishing.measurements import read_measurements
from inhibidistilbert.publishing.private_paths import find_private_paths
from tests.helpers.glue_files import SCHEMA, rows, write, write_checkpoint, write_task
from tests.helpers.slow import slow_but_first


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """Intervals and tests are looked at where they are the subject."""
    monkeypatch.setattr(scoring, "RESAMPLES", 20)


@pytest.fixture
def many_resamples(few_resamples, monkeypatch):
    monkeypatch.setattr(scoring, "RESAMPLES", 1000)


@pytest.fixture
def command(monkeypatch, capsys):
    """`command(arguments)`: exit code, stdout and stderr of `inhibidistilbert evaluate`."""

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["inhibidistilbert", "evaluate", *map(str, arguments)])
        capsys.readouterr()  # of what made the files
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return command


@pytest.fixture
def evaluate(command):
    """The JSON results of a run that must go well."""

    def evaluate(*arguments: object) -> list[dict]:
        code, out, err = command(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)["results"]

    return evaluate


def results(folder: Path) -> dict:
    return json.loads((folder / "eval_results.json").read_text())


def logits(folder: Path, texts: list[list[str]]) -> np.ndarray:
    """Computed one text at a time, straight through transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        encoded = (tokenizer(*parts, truncation=True, max_length=16, return_tensors="pt") for parts in texts)
        return torch.cat([model(x["input_ids"], x["attention_mask"]).logits for x in encoded]).numpy()


def classes_of(task: str) -> int:
    return max(1, SCHEMA[task][1])


# GLUE.


def test_the_nine_tasks_of_glue_are_there():
    assert [name for name in TASKS if find_task(name).dataset == GLUE] == list(SCHEMA)
    assert all(find_task(name).text_columns == SCHEMA[name][0] for name in SCHEMA)
    assert {name: [*find_task(name).submissions.values()] for name in SCHEMA} == SUBMISSIONS
    assert {name for name in SCHEMA if find_task(name).submits_names} == set(NAMED)
    assert {name for name in SCHEMA if find_task(name).splits != ("validation",)} == {"mnli"}
    assert [name for name in SCHEMA if find_task(name).metrics == (Accuracy, F1)] == ["mrpc", "qqp"]
    assert [name for name in SCHEMA if find_task(name).metrics == (Accuracy,)] == ["sst2", "mnli", "qnli", "rte", "wnli"]
    assert {name: len(find_task(name).labels) for name in SCHEMA} == {name: classes for name, (_, classes) in SCHEMA.items()}


def scores(task: str, outputs: np.ndarray, labels: list) -> dict[str, float]:
    """GLUE's metrics by scikit-learn and scipy."""
    predicted = outputs.argmax(1)
    if task == "stsb":
        correlations = {"pearson": stats.pearsonr, "spearmanr": stats.spearmanr}
        return {name: correlate(outputs[:, 0], labels).statistic for name, correlate in correlations.items()}
    if task == "cola":
        return {"matthews_correlation": sklearn_metrics.matthews_corrcoef(labels, predicted)}
    accuracy = {"accuracy": sklearn_metrics.accuracy_score(labels, predicted)}
    return accuracy | ({"f1": sklearn_metrics.f1_score(labels, predicted)} if task in ("mrpc", "qqp") else {})


def kinds(name: str) -> set:
    """What a task has that another may have, too; its row of the table is held above."""
    task = find_task(name)
    return {len(task.text_columns), task.metrics, ("splits", *task.splits), ("classes", classes_of(name))}


@pytest.mark.parametrize("task", slow_but_first(SCHEMA, kinds))
def test_a_task_of_glue_from_local_files(task, evaluate, tmp_path):
    folder, checkpoint = write_task(tmp_path / "data", task), write_checkpoint(tmp_path / "model", classes_of(task))
    found = evaluate(checkpoint, "--task", task, "--data", folder)
    splits = ["validation_matched", "validation_mismatched"] if task == "mnli" else ["validation"]
    assert [result["split"] for result in found] == splits
    for number, result in enumerate(found, 1):
        content = rows(task, 12, seed=number)
        outputs = logits(checkpoint, [[row[column] for column in SCHEMA[task][0]] for row in content])
        wanted = scores(task, outputs, [row["label"] for row in content])
        assert {name: values[0] for name, values in result["values"].items()} == pytest.approx(wanted, abs=1e-5)
    assert {row["split"] for row in results(checkpoint)["results"]} == set(splits)


SUBMISSIONS = {
    "cola": ["CoLA.tsv"],
    "sst2": ["SST-2.tsv"],
    "mrpc": ["MRPC.tsv"],
    "qqp": ["QQP.tsv"],
    "stsb": ["STS-B.tsv"],
    "mnli": ["MNLI-m.tsv", "MNLI-mm.tsv"],
    "qnli": ["QNLI.tsv"],
    "rte": ["RTE.tsv"],
    "wnli": ["WNLI.tsv"],
}
NAMED = {task: list(find_task(task).labels) for task in ("mnli", "qnli", "rte")}


@pytest.mark.parametrize("task", slow_but_first(SCHEMA, kinds))
def test_predictions_for_the_unlabelled_test_split(task, evaluate, tmp_path):
    folder, checkpoint = write_task(tmp_path / "data", task), write_checkpoint(tmp_path / "model", classes_of(task))
    names = list(find_task(task).submissions)
    splits = [part for name in names for part in ("--split", name)]
    assert evaluate(checkpoint, "--task", task, "--data", folder, *splits, "--output", tmp_path / "out") == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == SUBMISSIONS[task]
    for number, file in enumerate(SUBMISSIONS[task]):
        with (tmp_path / "out" / file).open(newline="") as stream:
            header, *found = csv.reader(stream, delimiter="\t")
        assert header == ["index", "prediction"]
        assert [row[0] for row in found] == [str(index) for index in range(12)]
        content = rows(task, 12, seed=1 + len(find_task(task).splits) + number, labelled=False)
        outputs = logits(checkpoint, [[row[column] for column in SCHEMA[task][0]] for row in content])
        predictions = [row[1] for row in found]
        if task == "stsb":
            assert [float(value) for value in predictions] == pytest.approx(outputs[:, 0].clip(0, 5), abs=1e-3)
        elif task in NAMED:
            assert predictions == [NAMED[task][label] for label in outputs.argmax(1)]
        else:
            assert predictions == [str(label) for label in outputs.argmax(1)]
    assert not (checkpoint / "eval_results.json").exists()


def test_classes_are_matched_by_name(evaluate, tmp_path):
    folder = write_task(tmp_path / "data", "mnli", count=40)
    ordered = write_checkpoint(tmp_path / "ordered", ["entailment", "neutral", "contradiction"])
    other = write_checkpoint(tmp_path / "other", ["Contradiction", "Entailment", "Neutral"])
    outputs = logits(other, [[row["premise"], row["hypothesis"]] for row in rows("mnli", 40, seed=1)])
    labels = [row["label"] for row in rows("mnli", 40, seed=1)]
    # Entailment is the other's output 1, neutral its 2, contradiction its 0.
    accuracy = np.mean(outputs[:, [1, 2, 0]].argmax(1) == labels)
    assert accuracy != np.mean(outputs.argmax(1) == labels)
    first, _, second, _ = evaluate(ordered, other, "--task", "mnli", "--data", folder)
    assert second["values"]["accuracy"] == [pytest.approx(accuracy)]
    assert first["values"]["accuracy"] == [pytest.approx(np.mean(outputs.argmax(1) == labels))]  # the same weights


# Files of one's own.


def test_named_columns_of_a_file(evaluate, tmp_path):
    content = [{"a": "a good film", "b": "the plot", "stars": 2.5}, {"a": "very bad", "b": "a dull plot", "stars": 0.5}]
    content.append({"a": "not bad", "b": "is very funny", "stars": 1.5})
    checkpoint = write_checkpoint(tmp_path / "model", 1)
    columns = ("--text-column", "a", "--text-pair-column", "b", "--label-column", "stars")
    data = write(tmp_path / "stars.jsonl", content)
    (found,) = evaluate(checkpoint, "--task", "regression", "--data", data, *columns)
    outputs = logits(checkpoint, [[row["a"], row["b"]] for row in content])[:, 0]
    assert found["values"]["pearson"][0] == pytest.approx(np.corrcoef(outputs, [2.5, 0.5, 1.5])[0, 1], abs=1e-5)
    (row, _) = results(checkpoint)["results"]
    assert (row["dataset"], row["published"], row["examples"]) == ("stars", False, 3)


def test_classes_by_their_names_and_what_is_made_of_each(evaluate, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "model", ["NEGATIVE", "POSITIVE"])
    content = sentiment(20, 0)
    predicted = logits(checkpoint, [[row["text"]] for row in content]).argmax(1)
    named = [row | {"label": ["negative", "Positive"][row["label"]]} for row in content]
    (found,) = evaluate(checkpoint, "--task", "classification", "--data", write(tmp_path / "named.csv", named))
    assert found["values"]["accuracy"] == [
        np.mean([row["label"] == label for row, label in zip(content, predicted, strict=True)])
    ]
    classes = found["classes"]
    assert classes["names"] == ["NEGATIVE", "POSITIVE"]
    pairs = [(row["label"], label) for row, label in zip(content, predicted, strict=True)]
    assert classes["confusion"] == [[pairs.count((i, j)) for j in (0, 1)] for i in (0, 1)]
    assert found["values"]["accuracy"] == [np.mean([label == other for label, other in pairs])]
    ((_, wrong), (_, right)) = classes["confusion"]
    assert classes["precision"][1] == right / (right + wrong)
    assert found["values"]["f1_macro"] == [pytest.approx(np.mean(classes["f1"]))]


def test_classes_that_are_trained_on_are_called_as_in_the_files(evaluate, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "model", 2)
    named = [row | {"label": ["sad", "glad"][row["label"]]} for row in sentiment(8, 0)]
    data = write(tmp_path / "named.csv", named)
    # Whatever split there is beside the one that is trained on is evaluated.
    options = ("--data", f"train={data}", "--data", f"validation={data}", "--fine-tune", "--epochs", "1")
    (found,) = evaluate(checkpoint, "--task", "classification", *options, "--output", tmp_path / "out")
    assert (found["split"], found["classes"]["names"]) == ("validation", ["glad", "sad"])
    assert json.loads((tmp_path / "out" / "seed-0" / "config.json").read_text())["id2label"] == {"0": "glad", "1": "sad"}


def test_the_package_is_not_written_to(command, tmp_path, monkeypatch):
    checkpoint = write_checkpoint(tmp_path / "package" / "checkpoints" / "model", 2)
    monkeypatch.setattr(evaluation_results, "files", lambda name: tmp_path / "package")
    data = write(tmp_path / "data.csv", sentiment(6, 0))
    code, out, err = command(checkpoint, "--task", "classification", "--data", data)
    assert (code, "precision" in out, "give --output DIR" in err) == (0, True, True)
    assert not (checkpoint / "eval_results.json").exists()


def test_a_file_without_labels_is_predicted(evaluate, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "model", 2)
    data = write(tmp_path / "new.csv", [{"text": "a good film"}, {"text": "a bad film"}])
    assert evaluate(checkpoint, "--task", "classification", "--data", data, "--output", tmp_path / "out") == []
    predicted = logits(checkpoint, [["a good film"], ["a bad film"]]).argmax(1)
    lines = (tmp_path / "out" / "new.tsv").read_text().splitlines()
    assert lines == ["index\tprediction", *(f"{index}\t{label}" for index, label in enumerate(predicted))]


# Several labels a text.

TAGS = ["dull", "funny", "long"]
MULTI_LABEL = {"problem_type": "multi_label_classification", "initializer_range": 1.0}


def tagged(count: int, seed: int) -> list[dict]:
    """Texts with the names of their labels, which are words in them."""
    generator = np.random.default_rng(seed)
    chosen = [[tag for tag in TAGS[:2] if generator.random() < 0.5] for _ in range(count)]
    return [{"text": " ".join(["the film was", *row]), "label": row} for row in chosen]


def hot(content: list[dict], names: list[str]) -> np.ndarray:
    return np.array([[int(name in row["label"]) for name in names] for row in content])


def label_scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """By scikit-learn, the average precision over the labels that are there."""
    there = labels.any(0)
    return {
        "f1_micro": sklearn_metrics.f1_score(labels, probabilities >= 0.5, average="micro"),
        "f1_macro": sklearn_metrics.f1_score(labels, probabilities >= 0.5, average="macro", zero_division=0),
        "average_precision": sklearn_metrics.average_precision_score(labels[:, there], probabilities[:, there]),
    }


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def test_several_labels_are_scored_each_by_itself_and_matched_by_name(evaluate, tmp_path):
    content = tagged(30, 0)
    data = tmp_path / "tags.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in content))
    one, other = (
        write_checkpoint(tmp_path / name, tags, **MULTI_LABEL) for name, tags in (("one", TAGS), ("other", TAGS[::-1]))
    )
    found = evaluate(one, other, "--task", "multi-label-classification", "--data", data)
    outputs = sigmoid(logits(one, [[row["text"]] for row in content]))
    for result, probabilities in zip(found, (outputs, outputs[:, ::-1]), strict=True):  # the same weights
        wanted = label_scores(probabilities, hot(content, TAGS))
        assert {name: values[0] for name, values in result["values"].items()} == pytest.approx(wanted, abs=1e-5)
        assert all(low <= high for low, high in result["intervals"].values())
    assert found[0]["values"] != found[1]["values"]
    (differences,) = found[0]["differences"].values()
    assert [each["metric"] for each in differences] == ["f1_micro", "f1_macro", "average_precision"]
    for each in differences:
        one_, other_ = (result["values"][each["metric"]][0] for result in found)
        assert each["difference"] == pytest.approx(one_ - other_)
    rows = results(one)["results"]
    assert {row["metric"]: row["value"] for row in rows} == {name: values[0] for name, values in found[0]["values"].items()}
    assert {x.metric for x in read_measurements(one)} == {"f1_micro", "f1_macro", "average_precision"}


def test_texts_without_lists_of_labels_are_given_them(evaluate, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "model", TAGS, **MULTI_LABEL)
    texts = ["a good film", "a bad film", "the plot was funny but dull"]
    data = write(tmp_path / "new.csv", [{"text": text} for text in texts])
    assert evaluate(checkpoint, "--task", "multi-label-classification", "--data", data, "--output", tmp_path / "out") == []
    chosen = sigmoid(logits(checkpoint, [[text] for text in texts])) >= 0.5
    assert 0 < chosen.sum() < chosen.size
    lines = (tmp_path / "out" / "new.tsv").read_text().splitlines()
    assert lines[1:] == [f"{row}\t{'|'.join(map(str, np.flatnonzero(each)))}" for row, each in enumerate(chosen)]


@pytest.mark.parametrize(
    "before", [{"initializer_range": 0.1}, {**MULTI_LABEL, "initializer_range": 0.1}], ids=["new", "own"]
)
def test_several_labels_are_fine_tuned(evaluate, tmp_path, before):
    """The names are a multi-label checkpoint's own, and those of the texts for the new head of another."""
    for name, seed in (("train", 0), ("test", 1)):
        cells = [f"{row['text']},{'|'.join(row['label'])}" for row in tagged(160, seed)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *cells]) + "\n")
    labels = TAGS if "problem_type" in before else ["NEGATIVE", "POSITIVE"]
    checkpoint = write_checkpoint(tmp_path / "model", labels, **before)
    data = ("--data", f"train={tmp_path / 'train.csv'}", "--data", tmp_path / "test.csv")
    arguments = ("--task", "multi-label-classification", *data, "--fine-tune", "--output", tmp_path / "out")
    (found,) = evaluate(checkpoint, *arguments, "--epochs", 4, "--learning-rate", 5e-3)
    assert found["values"]["average_precision"][0] > 0.9  # half the texts have each label
    config = json.loads((tmp_path / "out" / "seed-0" / "config.json").read_text())
    assert list(config["id2label"].values()) == (TAGS if labels == TAGS else TAGS[:2])
    assert config["problem_type"] == "multi_label_classification"


def test_a_head_that_was_trained_for_another_problem_is_drawn_anew(tmp_path):
    """Though it has the shape that is wanted; one for the same problem is kept."""
    source = write_checkpoint(tmp_path / "model", 2, problem_type="multi_label_classification")
    before = AutoModelForSequenceClassification.from_pretrained(source).classifier.weight
    kept, drawn = (
        load_checkpoint(str(source), 2, False, problem)[0]
        for problem in ("multi_label_classification", "single_label_classification")
    )
    assert torch.equal(kept.classifier.weight, before)
    assert not torch.equal(drawn.classifier.weight, before)
    assert drawn.config.problem_type == "single_label_classification"
    assert torch.equal(
        drawn.distilbert.transformer.layer[0].attention.q_lin.weight,
        kept.distilbert.transformer.layer[0].attention.q_lin.weight,
    )
    single = write_checkpoint(tmp_path / "single", 2, problem_type="single_label_classification")
    assert load_checkpoint(str(single), 1, False, "regression")[0].config.problem_type == "regression"


def sentiment(count: int, seed: int) -> list[dict]:
    """Texts of one word of judgement, which decides."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(2, size=count)
    words = (["bad", "dull"], ["good", "funny"])
    return [{"text": f"the film was {generator.choice(words[label])}", "label": int(label)} for label in labels]


# Fine-tuning.


def test_fine_tuning_with_two_seeds_against_a_control(evaluate, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write(data / "train.csv", sentiment(160, 0))
    write(data / "test.csv", sentiment(60, 1))
    one, other = (
        write_checkpoint(tmp_path / name, 3, seed=seed, initializer_range=0.1) for name, seed in (("one", 1), ("other", 2))
    )
    output = tmp_path / "runs" / "out"
    arguments = ("--task", "rotten_tomatoes", "--data", data, "--fine-tune", "--seed", 3, "--seed", 4, "--output", output)
    found = evaluate(one, other, *arguments, "--epochs", 4, "--learning-rate", 5e-3)
    assert [result["checkpoint"] for result in found] == [str(one), str(other)]
    assert all(value > 0.9 for value in found[0]["values"]["accuracy"])

    (row,) = results(output)["results"]
    values = found[0]["values"]["accuracy"]
    assert row["seeds"] == [3, 4]
    assert row["value"] == pytest.approx(np.mean(values))
    assert row["std"] == pytest.approx(np.std(values, ddof=1))
    assert row["fine_tuning"]["learning_rate"] == 5e-3
    assert row["control"]["value"] == pytest.approx(np.mean(found[1]["values"]["accuracy"]))
    assert sorted(path.name for path in output.iterdir()) == ["eval_results.json", "seed-3", "seed-4"]
    for seed, value in zip((3, 4), values, strict=True):
        predicted = logits(output / f"seed-{seed}", [[row["text"]] for row in sentiment(60, 1)]).argmax(1)
        assert np.mean(predicted == [row["label"] for row in sentiment(60, 1)]) == pytest.approx(value)
        (own,) = results(output / f"seed-{seed}")["results"]
        assert (own["value"], own["seeds"]) == (pytest.approx(value), [seed])
        config = json.loads((output / f"seed-{seed}" / "config.json").read_text())
        assert config["id2label"] == {"0": "NEGATIVE", "1": "POSITIVE"}
    assert {path.name for path in tmp_path.iterdir()} == {"data", "one", "other", "runs"}


def test_the_scalars_are_not_decayed_and_the_recipe_is_the_authors(tmp_path):
    from inhibidistilbert.evaluation.fine_tuning import FineTuner, Recipe

    model = AutoModelForSequenceClassification.from_pretrained(write_checkpoint(tmp_path / "model", 2))
    decayed = FineTuner.get_decay_parameter_names(object.__new__(FineTuner), model)
    assert any(name.endswith("q_lin.weight") for name in decayed)
    assert not any(name.endswith(("alpha", "beta", "gamma", "bias")) for name in decayed)
    assert (Recipe().learning_rate, Recipe().batch_size, Recipe().schedule, Recipe().epochs) == (2e-5, 8, "cosine", 4)


def test_the_same_seed_gives_the_same_model(evaluate, tmp_path):
    data = write(tmp_path / "train.csv", sentiment(40, 0))
    checkpoint = write_checkpoint(tmp_path / "model", 2)
    outputs = []
    for name in ("one", "two"):
        arguments = ("--data", f"train={data}", "--data", data, "--fine-tune", "--epochs", 1, "--output", tmp_path / name)
        evaluate(checkpoint, "--task", "classification", *arguments)
        outputs.append(logits(tmp_path / name / "seed-0", [["a very good film"]]))
    np.testing.assert_array_equal(*outputs)


# Intervals and comparisons.


def scored(predictions, references, metrics=(Accuracy,)) -> Scored:
    return Scored(np.atleast_2d(predictions), np.asarray(references), metrics)


def test_bootstrap_interval_of_an_accuracy(many_resamples):
    references = np.ones(400, dtype=int)
    predictions = np.r_[np.ones(320, dtype=int), np.zeros(80, dtype=int)]
    (low, high) = scored(predictions, references).intervals()["accuracy"]
    # The normal approximation: 0.8 ± 1.96 · √(0.8 · 0.2 / 400).
    assert (low, high) == (pytest.approx(0.7608, abs=0.006), pytest.approx(0.8392, abs=0.006))


def test_a_real_difference_is_found_and_none_is_not(monkeypatch):
    monkeypatch.setattr(scoring, "RESAMPLES", 300)
    generator = np.random.default_rng(0)
    references = generator.integers(2, size=300)

    def predictions(share):
        return np.where(generator.random(300) < share, references, 1 - references)

    good, same, bad = predictions(0.9), predictions(0.9), predictions(0.7)
    metrics = (Accuracy, MatthewsCorrelation)
    worse = compare(scored(good, references, metrics), scored(bad, references, metrics))
    assert [each.metric for each in worse] == ["accuracy", "matthews_correlation"]
    assert worse[0].value == pytest.approx(np.mean(good == references) - np.mean(bad == references))
    assert all(each.p_value < 0.01 for each in worse)
    assert compare(scored(good, references), scored(same, references))[0].p_value > 0.05
    (nothing,) = compare(scored(good, references), scored(good, references))
    assert (nothing.value, nothing.p_value) == (0, 1)


def test_the_paired_test_agrees_with_mcnemars(many_resamples):
    # 15 texts that only one model gets right, 5 that only the other does.
    references = np.ones(100, dtype=int)
    one, other = references.copy(), references.copy()
    other[:15], one[15:20] = 0, 0
    (found,) = compare(scored(one, references), scored(other, references))
    assert found.p_value == pytest.approx(stats.binomtest(5, 20).pvalue, abs=0.02)


# What publishing reads.


def test_the_file_is_what_publishing_reads(evaluate, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "model", 2)
    one, two = write(tmp_path / "one.csv", sentiment(20, 0)), write(tmp_path / "two.csv", sentiment(30, 1))
    evaluate(checkpoint, "--task", "classification", "--data", one)
    before = results(checkpoint)["results"]
    evaluate(checkpoint, "--task", "classification", "--data", two)
    evaluate(checkpoint, "--task", "classification", "--data", one)
    assert results(checkpoint)["results"] == [*results(checkpoint)["results"][:2], *before]
    found = read_measurements(checkpoint)
    assert [(x.dataset, x.published, x.metric, x.examples) for x in found] == [
        ("two", False, "accuracy", 30),
        ("two", False, "f1_macro", 30),
        ("one", False, "accuracy", 20),
        ("one", False, "f1_macro", 20),
    ]
    # Nothing in it tells where the files lay.
    assert list(find_private_paths((checkpoint / "eval_results.json").read_text())) == []
    assert {"command", "cpu", "torch", "seed"} <= results(checkpoint)["machine"].keys()


def test_a_set_from_the_hub_is_published(tmp_path, evaluate, monkeypatch):
    from datasets import Dataset

    from inhibidistilbert.evaluation import loading

    def load_dataset(name, config, split):
        assert (name, config, split) == ("stanfordnlp/imdb", "plain_text", "test")
        dataset = Dataset.from_list(sentiment(20, 0))
        address = "hf://datasets/stanfordnlp/imdb@e6281661ce1c48d982bc483cf8a173c1bbeb5d31/plain_text/test.parquet"
        dataset.info.download_checksums = {address: {"num_bytes": 1, "checksum": None}}
        return dataset

    monkeypatch.setattr(loading, "load_dataset", load_dataset)
    checkpoint = write_checkpoint(tmp_path / "model", ["NEGATIVE", "POSITIVE"])
    evaluate(checkpoint, "--task", "imdb")
    (found,) = read_measurements(checkpoint)
    assert (found.dataset, found.config, found.split) == ("stanfordnlp/imdb", "plain_text", "test")
    assert found.published
    assert found.revision == "e6281661ce1c48d982bc483cf8a173c1bbeb5d31"


def test_an_undefined_correlation_is_not_written(evaluate, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "model", 1)
    data = write(tmp_path / "same.csv", [{"text": "a good film", "label": label} for label in (0.5, 1.5, 2.5)])
    (found,) = evaluate(checkpoint, "--task", "regression", "--data", data)
    assert found["values"] == {"pearson": [None], "spearmanr": [None]}
    assert not (checkpoint / "eval_results.json").exists()


# Bad input.


@pytest.fixture
def bad(command, tmp_path):
    """`bad(parts, arguments…)`: one line that says all parts, exit code 2, no file changed."""
    checkpoint = write_checkpoint(tmp_path / "model", 2)
    data = write(tmp_path / "good.csv", sentiment(6, 0))

    def bad(*arguments: object, parts: list[str]) -> None:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        code, out, err = command(*(checkpoint if x == "MODEL" else data if x == "DATA" else x for x in arguments))
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        for part in parts:
            assert part in err
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before

    return bad


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["MODEL", "--task", "squad"], ["--task must be one of cola, sst2,", "got 'squad'"]),
        (["MODEL", "--task", "classification"], ["--task classification needs --data"]),
        (["MODEL", "--task", "cola", "--data", "nowhere"], ["--data 'nowhere' is neither a file nor a folder"]),
        (["MODEL", "--task", "cola", "--data", "DATA"], ["has no column 'sentence'", "text, label"]),
        (
            ["MODEL", "--task", "imdb", "--data", "DATA", "--split", "train", "--split", "validation"],
            ["no split 'validation'", "it has train"],
        ),
        (["MODEL", "--task", "imdb", "--data", "DATA", "--label-column", "stars"], ["has no column 'stars'"]),
        (
            ["MODEL", "--task", "classification", "--data", "DATA", "--label-column", "stars", "--output", "out"],
            ["has no column 'stars'", "text, label"],
        ),
        (["MODEL", "--task", "cola"], ["--task cola: split 'validation' of nyu-mll/glue cannot be loaded", "--data"]),
        (["MODEL", "--task", "imdb", "--data", "DATA", "--fine-tune"], ["--fine-tune needs --output"]),
        (["MODEL", "--task", "imdb", "--data", "DATA", "--seed", 1, "--seed", 2], ["--seed", "--fine-tune"]),
        (["MODEL", "--task", "imdb", "--data", "DATA", "--batch-size", 0], ["--batch-size must be a number above 0"]),
        (["MODEL", "--task", "imdb", "--data", "DATA", "--max-length", 17], ["--max-length must be at most 16", "got 17"]),
        (
            ["MODEL", "--task", "imdb", "--data", "DATA", "--text-pair-column", "text"],
            ["name different columns, got 'text'"],
        ),
        (["MODEL", "--task", "imdb", "--data", "DATA", "--label-column", "text"], ["--text-column and --label-column must"]),
        (["MODEL", "--task", "imdb", "--data", "DATA", "--max-length", 2], ["--max-length must be at least 4"]),
        (["MODEL", "MODEL", "--task", "imdb", "--data", "DATA"], ["each may be given once"]),
        (["nowhere", "--task", "imdb", "--data", "DATA"], ["CHECKPOINT 'nowhere' does not load"]),
        (["MODEL", "--task", "imdb", "--data", "DATA", "--device", "abacus"], ["device 'abacus' is not available"]),
        (["MODEL", "--task", "imdb", "--data", "DATA", "--output", "/proc/none"], ["--output '/proc/none' cannot be"]),
    ],
)
def test_bad_arguments_are_one_error_and_nothing_written(bad, arguments, parts):
    bad(*arguments, parts=parts)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("text,label\n", ["is empty: it holds no rows"]),
        ("text,label\ngood,1\nbad,2\n", ["label 2 in row 1", "0 to 1"]),
        ("text,label\ngood,1\nbad,-2\n", ["label -2 in row 1", "0 to 1"]),
        (
            "text,label\ngood,yes\nbad,no\n",
            ["classes, integers from 0", "'label'", "NEGATIVE, POSITIVE", "holds 'yes'"],
        ),
        ("text,label\ngood,1\nbad,no\n", ["classes, integers from 0, in 'label'", "line 3 has 'no'"]),
        ("text,label\ngood,1\nbad,-1\n", ["rows without a label in 'label'", "row 1"]),
        ("text,label\n,1\nbad,0\n", ["rows without a text in 'text'"]),
        ("text,label\ngood,01\nbad,0\n", ["classes, integers from 0, in 'label'", "line 2 has '01'"]),
        ("text,label\ngood,1\nbad\n", ["line 3 has 1 field, but the header has 2"]),
    ],
    ids=["empty", "large-label", "negative-label", "words", "mixed", "some-labels", "no-text", "leading-zero", "short-row"],
)
def test_bad_rows_are_one_error_and_nothing_written(bad, tmp_path, content, parts):
    (tmp_path / "bad.csv").write_text(content)
    bad("MODEL", "--task", "imdb", "--data", tmp_path / "bad.csv", parts=parts)


def test_names_of_classes_that_the_checkpoint_has_not(tmp_path, bad):
    (tmp_path / "words.csv").write_text("text,label\ngood,yes\nbad,no\n")
    parts = ["classes, integers from 0, in 'label'", "LABEL_0, LABEL_1", "'no', 'yes'"]
    bad("MODEL", "--task", "classification", "--data", tmp_path / "words.csv", parts=parts)


def test_an_empty_split(tmp_path, bad):
    from datasets import Dataset, Features, Value

    features = Features({"text": Value("string"), "label": Value("int64")})
    empty = Dataset.from_dict({"text": [], "label": []}, features=features)
    empty.to_parquet(str(tmp_path / "empty.parquet"))
    bad("MODEL", "--task", "imdb", "--data", tmp_path / "empty.parquet", parts=["empty.parquet", "is empty"])


def test_a_label_outside_the_range_of_a_model(tmp_path, bad):
    (tmp_path / "three.csv").write_text("text,label\ngood,2\nbad,0\n")
    bad("MODEL", "--task", "classification", "--data", tmp_path / "three.csv", parts=["label 2 in row 0", "0 to 1"])


def test_a_checkpoint_with_another_number_of_labels(tmp_path, bad):
    three = write_checkpoint(tmp_path / "three", 3)
    parts = [f"CHECKPOINT '{three}' has 3 labels, but task imdb has 2 (NEGATIVE, POSITIVE)"]
    bad(three, "--task", "imdb", "--data", "DATA", parts=parts)
    bad("MODEL", "--task", "regression", "--data", "DATA", parts=["has 2 labels, but task regression has 1"])


MULTI, SINGLE = "multi_label_classification", "single_label_classification"
MISFITS = [
    (
        3,
        MULTI,
        "classification",
        [f"is a multi-label classifier (problem_type {MULTI!r}, 3 outputs)", f"problem_type {SINGLE!r}"],
    ),
    (2, MULTI, "imdb", ["is a multi-label classifier", "task imdb", "--fine-tune"]),
    (1, MULTI, "regression", ["is a multi-label classifier", "task regression", "--task multi-label-classification"]),
    (
        2,
        SINGLE,
        "multi-label-classification",
        [f"is a classifier that gives one class (problem_type {SINGLE!r}, 2 outputs)"],
    ),
    (2, SINGLE, "regression", ["is a classifier that gives one class", "--task classification"]),
    (1, "regression", "classification", ["is a regression (problem_type 'regression', 1 output)", "--task regression"]),
    (1, None, "classification", ["is a regression (no problem_type, 1 output)"]),
    (3, "regression", "regression", ["has 3 labels, but task regression has 1"]),
    (1, "regression", "multi-label-classification", ["is a regression", f"problem_type {MULTI!r}"]),
]


@pytest.mark.parametrize(("labels", "problem", "task", "parts"), MISFITS)
def test_a_checkpoint_of_another_problem_is_refused_by_name(tmp_path, bad, labels, problem, task, parts):
    model = write_checkpoint(tmp_path / "another", labels, problem_type=problem)
    data = write(tmp_path / "numbers.csv", [{"text": "a film", "label": 0}, {"text": "a plot", "label": 0}])
    bad(model, "--task", task, "--data", data, parts=[f"CHECKPOINT {str(model)!r}", *parts])


def test_a_checkpoint_with_another_head_is_refused_by_name(tmp_path, bad):
    model = write_checkpoint(tmp_path / "choices", 1)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": ["InhibiDistilBertForMultipleChoice"]}))
    bad(model, "--task", "regression", "--data", "DATA", parts=["holds a InhibiDistilBertForMultipleChoice"])


def test_classes_of_other_names_are_refused(tmp_path, bad):
    model = write_checkpoint(tmp_path / "grades", ["GOOD", "BAD"])
    parts = ["calls its labels GOOD, BAD, but those of task imdb are NEGATIVE, POSITIVE"]
    bad(model, "--task", "imdb", "--data", "DATA", parts=parts)
    other = write_checkpoint(tmp_path / "stars", ["ONE", "TWO"])
    bad(model, other, "--task", "classification", "--data", "DATA", parts=[f"those of {str(model)!r} are GOOD, BAD"])


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (
            "text,label\na film,funny|sad\n",
            ["split 'test' of 'bad', column 'label'", "['funny', 'sad']", "dull, funny, long"],
        ),
        ("text,label\na film,0.5\n", ["must hold lists of labels"]),
        ("text,tags\na film,funny\n", ["split 'test' has no labels: give --output"]),
    ],
)
def test_bad_lists_of_labels_are_one_error(tmp_path, bad, content, parts):
    model = write_checkpoint(tmp_path / "tags", TAGS, **MULTI_LABEL)
    (tmp_path / "bad.csv").write_text(content)
    bad(model, "--task", "multi-label-classification", "--data", tmp_path / "bad.csv", parts=parts)


@pytest.mark.parametrize("tuned", [False, True], ids=["scored", "fine-tuned"])
@pytest.mark.parametrize(
    ("fields", "part"),
    [({"n_layers": 0}, "n_layers must be at least 1"), ({"n_layers": 1}, "holds distilbert."), ({"hidden_dim": 8}, "shape")],
    ids=str,
)
def test_a_checkpoint_whose_config_is_another_models(tmp_path, bad, fields, part, tuned):
    """Only a head may be new where one is trained."""
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    arguments = ("--data", f"train={tmp_path / 'good.csv'}", "--fine-tune", "--output", tmp_path / "out") if tuned else ()
    bad("MODEL", "--task", "imdb", "--data", "DATA", *arguments, parts=["CHECKPOINT", part])


def test_unlabelled_texts_need_an_output_and_one_model(tmp_path, bad):
    data = write(tmp_path / "new.csv", [{"text": "a good film"}])
    arguments = ("--task", "classification", "--data", data)
    bad("MODEL", *arguments, parts=["split 'test' has no labels: give --output"])
    other = write_checkpoint(tmp_path / "other", 2)
    bad("MODEL", other, *arguments, "--output", tmp_path / "out", parts=["give one CHECKPOINT"])
    train = ("--data", f"train={data}", "--fine-tune", "--output", tmp_path / "out")
    bad("MODEL", *arguments, *train, parts=["--fine-tune: split 'train' of 'new' has no labels"])


def test_a_fine_tuning_does_not_replace_a_folder(tmp_path, bad):
    (tmp_path / "out").mkdir()
    arguments = ("--task", "imdb", "--data", "DATA", "--data", f"train={tmp_path / 'good.csv'}", "--fine-tune")
    bad("MODEL", *arguments, "--output", tmp_path / "out", parts=["'--output"[1:], "exists already"])


def test_a_full_disk_leaves_nothing_half_written(tmp_path, command, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(evaluation_results.EvalResults, "write", full)
    model, data = write_checkpoint(tmp_path / "model", 2), write(tmp_path / "good.csv", sentiment(6, 0))
    code, out, err = command(model, "--task", "imdb", "--data", data, "--output", tmp_path / "out")
    assert (code, out) == (2, "")
    assert re.search(r"\nerror: --output: .*out' cannot be written: .*No space left on device: free some space.*\n$", err)
    assert not (tmp_path / "out").exists()


def test_results_that_cannot_be_read_are_not_replaced(tmp_path, bad):
    (tmp_path / "model" / "eval_results.json").write_text("{")
    bad("MODEL", "--task", "imdb", "--data", "DATA", parts=["eval_results.json", "mend or remove it"])


def test_results_of_another_model_are_not_added_to(evaluate, tmp_path, bad):
    """Neither where it was trained on in its folder, nor where another is evaluated into the same output."""
    arguments = ("--task", "imdb", "--data", tmp_path / "good.csv")
    evaluate(tmp_path / "model", *arguments)
    evaluate(tmp_path / "model", *arguments, "--output", tmp_path / "out")
    before = results(tmp_path / "model")
    write_checkpoint(tmp_path / "model", 2, seed=1)
    for output in ((), ("--output", tmp_path / "out")):
        bad(
            "MODEL",
            *arguments,
            *output,
            parts=["eval_results.json", "of another model", "model.safetensors held", "move the"],
        )
    assert results(tmp_path / "model") == before


def test_some_rows_have_no_name(tmp_path, bad):
    (tmp_path / "rows.jsonl").write_text('{"idx": 0, "text": "a", "label": 1}\n{"text": "b", "label": 1}\n')
    bad("MODEL", "--task", "imdb", "--data", tmp_path / "rows.jsonl", parts=["without a name in 'idx'", "row 1"])


def test_a_file_in_glues_form(tmp_path):
    file = tmp_path / "dev.tsv"
    file.write_text('idx\tsentence\tlabel\n007\t"Good\t1\n1.0\t2020-01-01\t0\n-\t"\t1\nNA\tbad" film\t0\n')
    rows = load_split(find_task("sst2"), "validation", {"validation": file}).rows
    assert rows["text"][:] == ['"Good', "2020-01-01", '"', 'bad" film']
    assert (rows["label"][:], rows["idx"][:]) == ([1, 0, 1, 0], ["007", "1.0", "-", "NA"])


def test_files_by_split(tmp_path):
    task = find_task("imdb")
    file = write(tmp_path / "a=b.csv", sentiment(3, 0))
    assert parse_data([str(file)], task) == {"test": file}
    assert parse_data([f"train={file}"], task) == {"train": file}
    assert load_split(task, "test", {"test": file}).rows["label"][:] == [row["label"] for row in sentiment(3, 0)]
