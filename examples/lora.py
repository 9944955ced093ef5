"""Train low-rank adapters (LoRA, by PEFT) on a CSV file, save them, and load them onto the untouched checkpoint.

The folder that it writes has the adapters and the new head alone, a small part of the checkpoint's size.
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

from inhibidistilbert.prediction import default_checkpoint  # Importing the package makes the Auto classes know the model.


def load_base(checkpoint: str, labels: list[str]) -> PreTrainedModel:
    """The checkpoint with a new head for `labels`."""
    return AutoModelForSequenceClassification.from_pretrained(
        checkpoint,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        ignore_mismatched_sizes=True,
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--checkpoint", default=str(default_checkpoint()), help="a folder or the name of a repository")
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_name("messages.csv"), help="columns text and label")
    parser.add_argument("--output", default="runs/lora", help="the folder to write the adapters to")
    parser.add_argument("--rank", type=int, default=8, help="of the adapters")
    parser.add_argument("--epochs", type=float, default=12, help="passes over the rows")
    parser.add_argument("--learning-rate", type=float, default=5e-3, help="adapters bear more than whole models")
    parser.add_argument("--batch-size", type=int, default=16, help="texts a step")
    parser.add_argument("--seed", type=int, default=0, help="of the adapters, the new head and the order of the rows")
    options = parser.parse_args(arguments)
    set_seed(options.seed)

    rows = Dataset.from_csv(str(options.csv)).select_columns(["text", "label"])
    rows = rows.rename_column("label", "labels").class_encode_column("labels")
    labels = rows.features["labels"].names
    tokenizer = AutoTokenizer.from_pretrained(options.checkpoint)
    texts = rows["text"][:8]
    rows = rows.map(lambda batch: tokenizer(batch["text"], truncation=True), batched=True, remove_columns="text")

    # PEFT does not know the model, so the layers are named. SEQ_CLS trains and saves the head as well.
    config = LoraConfig(
        task_type="SEQ_CLS", r=options.rank, lora_alpha=2 * options.rank, target_modules=["q_lin", "k_lin", "v_lin"]
    )
    model = get_peft_model(load_base(options.checkpoint, labels), config)
    trained, total = model.get_nb_trainable_parameters()
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
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    model.save_pretrained(options.output)

    loaded = PeftModel.from_pretrained(load_base(options.checkpoint, labels), options.output).eval()
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        difference = (loaded(**batch).logits - model.eval()(**batch.to(model.device)).logits.cpu()).abs().max().item()
    size = Path(options.output, "adapter_model.safetensors").stat().st_size
    print(f"trained {trained:,} of {total:,} parameters: training loss {before:.3f} before, {after:.3f} after")
    print(f"{options.output} has {size / 1e6:.2f} MB; loaded again, logits differ by {difference:.1e} at most")


if __name__ == "__main__":
    main()
