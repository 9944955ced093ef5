"""How rows become batches: an order that resuming finds again, and BERT's masks."""

import pytest
import torch
from transformers import DistilBertTokenizer

from inhibidistilbert.distillation.batches import LengthGrouped, Masking
from inhibidistilbert.distillation.data import NO_LABEL
from tests.helpers.toy_task import POSITIONS, VOCABULARY

# Order


def order(epoch: float, seed: int = 0, step: int = 8) -> list[int]:
    lengths = torch.randint(3, 12, (100,), generator=torch.Generator().manual_seed(1)).tolist()
    return list(LengthGrouped(lengths, step, seed, lambda: epoch))


def test_an_epochs_order_depends_on_the_seed_and_the_epoch_alone():
    first = order(epoch=1.0)
    torch.rand(7)
    assert order(epoch=1.4) == order(epoch=1.99) == first
    assert sorted(first) == list(range(100))
    assert order(epoch=2.0) != first
    assert order(epoch=2.0 - 1e-9) == order(epoch=2.0)
    assert order(epoch=1.0, seed=1) != first


# Masks


TEXTS = [[2, 7, 8, 9, 10, 11, 12, 13, 3], [2, 7, 8, 3]]


def masked(rows: list[list[int]], step: int = 0, seed: int = 0, probability: float = 0.5) -> dict[str, torch.Tensor]:
    tokenizer = DistilBertTokenizer(vocab=VOCABULARY, model_max_length=POSITIONS)
    batch = dict(tokenizer.pad({"input_ids": rows}, return_tensors="pt"))
    return Masking(tokenizer, probability, seed)(batch, step)


def test_a_text_is_masked_the_same_in_every_batch():
    together, alone = masked(TEXTS), [masked([row]) for row in TEXTS]
    for row, (text, single) in enumerate(zip(TEXTS, alone, strict=True)):
        for name in ("input_ids", "labels"):
            assert together[name][row, : len(text)].tolist() == single[name][0].tolist()
    assert (together["labels"][1, 4:] == NO_LABEL).all()


def test_masks_change_with_the_step_and_the_seed():
    first = masked(TEXTS)["labels"]
    assert any(not torch.equal(masked(TEXTS, step=step)["labels"], first) for step in (1, 2))
    assert any(not torch.equal(masked(TEXTS, seed=seed)["labels"], first) for seed in (1, 2))


def test_masks_are_berts():
    """15 % of the tokens are told, never special ones; of those 80 % are [MASK], 10 % any token, 10 % as they were."""
    rows = [[2, *torch.randint(5, len(VOCABULARY), (28,)).tolist(), 3] for _ in range(600)]
    batch, original = masked(rows, probability=0.15), torch.tensor(rows)
    told = batch["labels"] != NO_LABEL
    assert torch.equal(batch["labels"][told], original[told])
    assert torch.equal(batch["input_ids"][~told], original[~told])
    assert not told[:, [0, -1]].any()
    count = told.sum().item()
    assert count / (600 * 28) == pytest.approx(0.15, abs=0.01)
    assert (batch["input_ids"][told] == VOCABULARY["[MASK]"]).sum().item() / count == pytest.approx(0.8, abs=0.03)
    kept = (batch["input_ids"] == original)[told].sum().item() / count
    assert kept == pytest.approx(0.1 + 0.1 / len(VOCABULARY), abs=0.02)
