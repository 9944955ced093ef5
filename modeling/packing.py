"""Texts one behind the other without padding: layers see `(1, tokens, dim)`, and each text attends to itself alone."""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ..kernels.cpu.packed import Run
from ..kernels.packed import lengths_between, runs_of

# Below this share of padding the packing takes as long as what it saves.
_WORTH_IT = 1 / 16
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_CAPTURING = "transformers.utils.output_capturing"  # its hooks stay after the first call that asks for outputs


@dataclass(frozen=True)
class Packing:
    """Where the texts of a batch are.

    lengths: tokens of each text, in order. places: `(tokens,)`, where each token stands among the B·L of the batch;
    None where they are all.
    """

    lengths: list[int]
    places: Tensor | None = None

    def pack(self, states: Tensor) -> Tensor:
        """`(B, L, dim)` -> `(1, tokens, dim)`."""
        rows = states.flatten(0, 1)
        return (rows if self.places is None else rows[self.places])[None]

    def unpack(self, states: Tensor, shape: torch.Size) -> Tensor:
        """`(1, tokens, dim)` -> `(B, L, dim)` for `shape` (B, L), 0 at padding."""
        if self.places is None:
            return states.view(*shape, -1)
        rows = states.new_zeros(shape[0] * shape[1], states.shape[2])
        return rows.index_copy(0, self.places, states[0]).view(*shape, -1)

    @cached_property
    def runs(self) -> list[Run]:
        return runs_of(self.lengths)

    def divisor(self, normalization: str, device: torch.device) -> Tensor | None:
        """As `length_divisor`, of each token: `(tokens, 1, 1)`."""
        if normalization not in ("mean", "sqrt"):
            return None
        lengths = torch.tensor(self.lengths, device=device)
        count = lengths.repeat_interleave(lengths)[:, None, None]
        return count**0.5 if normalization == "sqrt" else count

    def first_tokens(self) -> list[int]:
        return [0, *accumulate(self.lengths[:-1])]


def is_traced() -> bool:
    """Whether the numbers in tensors may not decide what is computed."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch.compiler.is_exporting()
        or torch._C._are_functorch_transforms_active()
    )


def without_padding(layers: nn.Module, attention_mask: Tensor) -> Packing | None:
    """The packing that leaves padding out; None where there is little, under tracing, and where hooks look at layers."""
    if attention_mask.ndim != 2 or attention_mask.device.type != "cpu" or is_traced():
        return None
    visible = attention_mask.bool()
    lengths = visible.sum(-1).tolist()
    if not 0 < sum(lengths) <= (1 - _WORTH_IT) * visible.numel() or is_watched(layers):
        return None
    return Packing(lengths, visible.flatten().nonzero()[:, 0])


def packed_texts(shape: torch.Size, position_ids: Tensor | None, boundaries: Tensor | None = None) -> Packing | None:
    """The texts of rows that hold several; None where each holds one, and under tracing.

    shape: (B, L). position_ids: `(B or 1, L)`; 0, 1, 2, … of each text. boundaries: `(texts + 1,)`, the first token
    of each text and the end, as transformers' `cu_seq_lens_q`.

    Raises:
        ValueError: boundaries that do not go from 0 to the number of tokens.
    """
    if is_traced():
        return None
    tokens = shape[0] * shape[1]
    if boundaries is not None:
        return Packing([length for length in lengths_between(boundaries, tokens, "cu_seq_lens_q") if length])
    if position_ids is None or not (starts := _starts(position_ids))[:, 1:].any():
        return None
    places = [*starts.expand(shape).flatten().nonzero()[:, 0].tolist(), tokens]
    return Packing([end - start for start, end in pairwise(places)])


def same_text(shape: torch.Size, position_ids: Tensor | None, boundaries: Tensor | None = None) -> Tensor | None:
    """What `packed_texts` finds, as a mask for other attention: `(B, 1, L, L)`, True within a text. Looks at no value."""
    if boundaries is not None:
        tokens = torch.arange(shape[0] * shape[1], device=boundaries.device)
        texts = torch.bucketize(tokens, boundaries, right=True).view(shape)
    elif position_ids is not None:
        texts = _starts(position_ids).cumsum(-1).expand(shape)
    else:
        return None
    return (texts[:, None, :] == texts[:, :, None])[:, None]


def _starts(position_ids: Tensor) -> Tensor:
    """Where a text begins; nowhere, where positions are of another kind than 0, 1, 2, … of each text."""
    starts = position_ids == 0
    follows = nn.functional.pad(position_ids[:, 1:] - position_ids[:, :-1] == 1, (1, 0))
    return starts & (starts | follows).all()


def is_watched(layers: nn.Module) -> bool:
    """Whether hooks, other than those that transformers leaves behind, look at what layers compute."""
    if _has_any_global_hook():
        return True
    hooks = (hook for module in layers.modules() for name in HOOKS for hook in getattr(module, name).values())
    return any(getattr(hook, "__module__", None) != _CAPTURING for hook in hooks)
