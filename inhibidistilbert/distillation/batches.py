"""Makes batches of rows of token ids: their order, their padding, their masks."""

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase
from transformers.trainer_pt_utils import get_length_grouped_indices

from .data import NO_LABEL
from .tasks import TaskKind


class LengthGrouped(Sampler):
    """Texts of similar length together, in an order that the seed and the epoch alone decide: resuming finds it again.

    step: texts of one step, over all processes. epoch: asked whenever an order begins.
    """

    def __init__(self, lengths: list[int], step: int, seed: int, epoch: Callable[[], float]):
        self.lengths = lengths
        self.step = step
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator()
        # At an epoch's end its number may fall short of a whole one by a rounding.
        generator.manual_seed(self.seed * 1_000_003 + math.floor(self.epoch() + 1e-6))
        return iter(get_length_grouped_indices(self.lengths, self.step, generator=generator))


class Collator:
    """Rows of token ids, padded, with their mask, the task's labels and the teacher's logits if the rows carry them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, task: TaskKind | None = None):
        self.tokenizer = tokenizer
        self.task = task

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        ids = [{"input_ids": row["input_ids"]} for row in rows]
        # By its own method, so that a fast tokenizer does not advise to use another.
        batch = dict(self.tokenizer.pad(ids, return_tensors="pt", verbose=False))
        if self.task is not None:
            batch |= self.task.collate(rows, batch["input_ids"].shape[1])
        if "teacher_logits" in rows[0]:
            batch["teacher_logits"] = torch.from_numpy(np.array([row["teacher_logits"] for row in rows], dtype=np.float32))
        return batch


class Masking:
    """BERT's masking: of each text's tokens a share is to be told; of those 80 % become [MASK], 10 % another token.

    What is masked depends on the seed, the step and the text alone, so that resuming and other numbers of processes find
    the same masks.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, probability: float, seed: int):
        self.special = torch.tensor(sorted(tokenizer.all_special_ids))
        self.mask_token = int(tokenizer.mask_token_id)
        self.vocabulary = len(tokenizer)
        self.probability = probability
        self.seed = seed

    def __call__(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        device = batch["input_ids"].device
        ids = batch["input_ids"].cpu().clone()
        labels = torch.full_like(ids, NO_LABEL)
        for row, length in enumerate(batch["attention_mask"].sum(-1).tolist()):
            tokens = ids[row, :length]
            generator = torch.Generator().manual_seed(zlib.crc32(tokens.numpy().tobytes()) ^ (self.seed * 1_000_003 + step))
            told = (torch.rand(length, generator=generator) < self.probability) & ~torch.isin(tokens, self.special)
            labels[row, :length][told] = tokens[told]
            draw = torch.rand(length, generator=generator)
            others = torch.randint(self.vocabulary, (length,), generator=generator)
            tokens[told & (draw < 0.8)] = self.mask_token
            replaced = told & (draw >= 0.9)
            tokens[replaced] = others[replaced]
        return {**batch, "input_ids": ids.to(device), "labels": labels.to(device)}
