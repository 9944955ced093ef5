"""Products of bytes on the tile registers of Intel's AMX: 16 x 64 bytes with 64 x 16 into 16 x 16 whole numbers each.

LLVM has instructions that name the registers; nothing else in our code uses them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from .inhibitor_llvm_builder import I8, I32, Function, Value, vector
from .inhibitor_llvm_jit import Machine

ROWS = 32  # of x in a tile of ours: two registers wide, and two high
DEPTH = 64  # inputs of a step
_SIDE = 16
_LINE = 64  # bytes of a register's row
# Four registers of 16 rows of 64 bytes each, as the processor's manual lays a configuration out.
_CONFIGURATION = (1, *[0] * 3, *[0x00400040] * 2, *[0] * 6, 0x10101010, *[0] * 3)


def has_tiles(machine: Machine) -> bool:
    return machine.lanes == _SIDE and machine.has("amx-int8") and machine.has("avx512vnni")


def _do(f: Function, name: str, *operands: Value | int) -> None:
    """An instruction; of operands, numbers name registers."""
    types = [I8 if isinstance(x, int) else x.type for x in operands]
    listed = ", ".join(f"i8 {x}" if isinstance(x, int) else f"{x.type} {x.text}" for x in operands)
    declared = ", ".join(f"{t} immarg" if isinstance(x, int) else t for t, x in zip(types, operands, strict=True))
    f.module.declare(f"declare void @llvm.x86.{name}({declared})")
    f.line(f"call void @llvm.x86.{name}({listed})")


@contextmanager
def configured(f: Function) -> Iterator[None]:
    """Sets up this thread's registers, and afterwards as they were: oneDNN, on torch's threads, relies on its own setup."""
    words = vector(_SIDE, I32)
    before, ours = f.array(words, 1), f.array(words, 1)
    ours.store(Value(f, words, f"<{', '.join(f'i32 {x}' for x in _CONFIGURATION)}>"))
    _do(f, "sttilecfg", before)
    _do(f, "ldtilecfg", ours)
    yield
    _do(f, "ldtilecfg", before)


def products(f: Function, weight: Value, x: Value, depth: Value, ahead: Value) -> Value:
    """Sums of products, `(32 outputs, ROWS)` i32 on the stack, of weights as they are stored and packed rows.

    x: two groups of 16 rows, each as `[inputs of a word][row]`.
    ahead: whether the weights that follow are brought near meanwhile.
    """
    sums = f.array(vector(_SIDE, I32), 2 * ROWS)
    line = f.integer(_LINE)
    # Half of the registers, each half of the outputs by itself: four products at once, in all eight, took 1.6 times as long.
    weights, rows = 2, 3
    for half in range(2):
        outputs = weight.at(depth * (_SIDE * half), I8)
        for group in range(2):
            _do(f, "tilezero", group)
        with f.loop(0, depth, DEPTH) as k:
            with f.when(ahead):
                for output in range(_SIDE):
                    f.prefetch(outputs.at(depth * (2 * _SIDE + output) + k, I8))
            _do(f, "tileloadd64", weights, outputs.at(k, I8), depth)
            for group in range(2):
                _do(f, "tileloadd64", rows, x.at(depth * (_SIDE * group) + k * _SIDE, I8), line)
                _do(f, "tdpbssd", group, weights, rows)
        for group in range(2):
            place = sums.at(2 * _SIDE * _LINE * half + _LINE * group, I8)
            _do(f, "tilestored64", group, place, f.integer(2 * _LINE))
    return sums
