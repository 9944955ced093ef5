"""The two steps of inhibitor attention that have a number for every query, key and channel, for ONNX.

An ONNX runtime fuses nothing of them, so in a plain graph they are tensors of hundreds of megabytes. Here a loop over blocks
of queries, which becomes ONNX's Scan, keeps a block near the processor. Matrix products take the sums.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .forms import Form

_ROWS = 32  # queries of a block: more would leave the cache, fewer would not be worth a step of the loop


def for_onnx() -> bool:
    """Whether an ONNX graph is being made."""
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()  # the second alone imports much, for every call


def scanned_distances(query: Tensor, key: Tensor) -> Tensor:
    """Manhattan distances `(B, H, M, N)` of queries `(B, H, M, d)` to keys `(B, H, N, d)`."""
    keys = key.transpose(-1, -2).flatten(0, 1)
    ones = query.new_ones(1, query.shape[-1])

    def of_block(rows: Tensor, head: Tensor) -> Tensor:
        return torch.matmul(ones, (rows[..., None] - keys.index_select(0, head)).abs()).squeeze(1)

    return _by_blocks(of_block, query)


def scanned_inhibition(value: Tensor, shift: Tensor, form: Form) -> Tensor:
    """Sum over the keys of what passes: values `(B, H, N, d)`, shift `(B, H, M, N)` -> `(B, H, M, d)`."""
    values = value.transpose(-1, -2).flatten(0, 1)
    size = values.abs() if form.signed else values
    weight = values.sign() if form.signed else torch.ones_like(values)
    opened = size / 2 if form.gate else size

    def of_block(rows: Tensor, head: Tensor) -> Tensor:
        passing = (opened.index_select(0, head).transpose(0, 1) - rows).relu()
        if form.gate:
            passing = torch.minimum(passing, size.index_select(0, head).transpose(0, 1))
        return torch.matmul(passing, weight.index_select(0, head).squeeze(0)[..., None]).squeeze(-1).transpose(0, 1).clone()

    return _by_blocks(of_block, shift)


def _by_blocks(of_block: Callable[[Tensor, Tensor], Tensor], rows: Tensor) -> Tensor:
    """`of_block` of the rows `(_ROWS, x)` of one head and the head's number among all `(1,)` gives `(_ROWS, y)`:
    `(B, H, M, x)` -> `(B, H, M, y)`."""
    from torch._higher_order_ops.scan import scan  # not public yet: a torch without it has all but this

    batch, heads, length, size = rows.shape
    padded = torch.nn.functional.pad(rows, (0, 0, 0, -length % _ROWS))
    blocks = padded.reshape(-1, _ROWS, size)
    head = torch.arange(blocks.shape[0], device=rows.device) * _ROWS // padded.shape[2]
    # Nothing is carried from block to block, but a scan must carry something.
    _, results = scan(lambda none, each: (none.clone(), of_block(*each)), rows.new_zeros(()), (blocks, head[:, None]))
    return results.reshape(batch, heads, -1, results.shape[-1])[:, :, :length]
