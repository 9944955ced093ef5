"""Fine-tune a checkpoint on a CSV file with transformers' Trainer.

The file has a column of texts and one of labels. A quarter of its rows is held out to measure on.
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from inhibidistilbert.prediction import default_checkpoint  # Importing the package makes the Auto classes know the model.


def accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--checkpoint", default=str(default_checkpoint()), help="a folder or the name of a repository")
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_name("messages.csv"), help="the file to learn from")
    parser.add_argument("--text-column", default="text", help="its column of texts")
    parser.add_argument("--label-column", default="label", help="its column of labels")
    parser.add_argument("--output", default="runs/fine-tuned", help="the folder to write the new checkpoint to")
    parser.add_argument("--epochs", type=float, default=12, help="passes over the training rows")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="1e-3 suits a tiny model, 2e-5 one of base size")
    parser.add_argument("--batch-size", type=int, default=16, help="texts a step")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the new head and the order of the rows")
    options = parser.parse_args(arguments)
    set_seed(options.seed)

    rows = Dataset.from_csv(str(options.csv)).select_columns([options.text_column, options.label_column])
    rows = rows.rename_columns({options.text_column: "text", options.label_column: "labels"}).class_encode_column("labels")
    labels = rows.features["labels"].names

    tokenizer = AutoTokenizer.from_pretrained(options.checkpoint)
    rows = rows.map(lambda batch: tokenizer(batch["text"], truncation=True), batched=True, remove_columns="text")
    rows = rows.train_test_split(test_size=0.25, stratify_by_column="labels", seed=options.seed)

    model = AutoModelForSequenceClassification.from_pretrained(
        options.checkpoint,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        ignore_mismatched_sizes=True,  # The new labels need a new head.
    )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.output,
            num_train_epochs=options.epochs,
            learning_rate=options.learning_rate,
            per_device_train_batch_size=options.batch_size,
            seed=options.seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=accuracy,
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    trainer.save_model()
    for name, scores in (("before", before), ("after", after)):
        print(f"{name}: held-out loss {scores['eval_loss']:.3f}, accuracy {scores['eval_accuracy']:.2f}")
    print(f"{options.output} classifies {', '.join(labels)}.")


if __name__ == "__main__":
    main()
