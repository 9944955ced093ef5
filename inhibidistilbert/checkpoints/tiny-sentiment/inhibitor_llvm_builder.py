"""A small language to write LLVM IR in: typed values with Python's operators, structured loops, one text at the end.

LLVM's own builder is not needed to write a text, so the code generators run, and are read, without llvmlite. Sizes and
indices are signed 64-bit, memory is addressed in elements.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Union

I1, I8, I16, I32, I64, F32, PTR = "i1", "i8", "i16", "i32", "i64", "float", "ptr"

Operand = Union["Value", int, float]


def vector(width: int, element: str) -> str:
    """The type of `width` lanes of `element`."""
    return f"<{width} x {element}>"


def lanes(type_: str) -> int:
    """How many lanes a type has; 0 for a scalar."""
    return int(type_[1:].split(" x ")[0]) if type_.startswith("<") else 0


def element(type_: str) -> str:
    """The type of one lane."""
    return type_[1:-1].split(" x ")[1] if type_.startswith("<") else type_


def constant(type_: str, number: float) -> str:
    """A number as LLVM writes it in `type_`, the same in every lane."""
    if lanes(type_):
        one = f"{element(type_)} {constant(element(type_), number)}"
        return f"<{', '.join([one] * lanes(type_))}>"
    if type_ == F32:
        # A float is written as the double of the same value.
        as_float = struct.unpack("f", struct.pack("f", number))[0]
        return f"0x{struct.unpack('>Q', struct.pack('>d', as_float))[0]:016X}"
    return str(int(number))


class Value:
    """A typed value. Comparisons are signed, and false for NaN; those of vectors give vectors of i1."""

    __slots__ = ("function", "text", "type")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, function: "Function", type_: str, text: str) -> None:
        self.function, self.type, self.text = function, type_, text

    def _operand(self, other: Operand) -> str:
        if not isinstance(other, Value):
            return constant(self.type, other)
        if other.type != self.type:
            raise TypeError(f"{self.type} and {other.type} do not mix")
        return other.text

    def _binary(self, other: Operand, integer: str, floating: str = "") -> "Value":
        instruction = floating if element(self.type) == F32 else integer
        return self.function.emit(self.type, f"{instruction} {self.type} {self.text}, {self._operand(other)}")

    def _compare(self, other: Operand, condition: str) -> "Value":
        type_ = vector(lanes(self.type), I1) if lanes(self.type) else I1
        if element(self.type) == F32:
            instruction = f"fcmp {'o' + condition}"
        else:
            instruction = f"icmp {condition if condition in ('eq', 'ne') else 's' + condition}"
        return self.function.emit(type_, f"{instruction} {self.type} {self.text}, {self._operand(other)}")

    def __add__(self, other: Operand) -> "Value":
        return self._binary(other, "add", "fadd")

    def __sub__(self, other: Operand) -> "Value":
        return self._binary(other, "sub", "fsub")

    def __mul__(self, other: Operand) -> "Value":
        return self._binary(other, "mul", "fmul")

    def __truediv__(self, other: Operand) -> "Value":
        return self._binary(other, "", "fdiv")

    def __floordiv__(self, other: Operand) -> "Value":
        """For numbers that are not negative."""
        return self._binary(other, "udiv")

    def __mod__(self, other: Operand) -> "Value":
        """For numbers that are not negative."""
        return self._binary(other, "urem")

    def __and__(self, other: Operand) -> "Value":
        return self._binary(other, "and")

    def __or__(self, other: Operand) -> "Value":
        return self._binary(other, "or")

    def __xor__(self, other: Operand) -> "Value":
        return self._binary(other, "xor")

    def __lshift__(self, other: Operand) -> "Value":
        return self._binary(other, "shl")

    def __rshift__(self, other: Operand) -> "Value":
        """Zeros come in at the top."""
        return self._binary(other, "lshr")

    def __lt__(self, other: Operand) -> "Value":
        return self._compare(other, "lt")

    def __le__(self, other: Operand) -> "Value":
        return self._compare(other, "le")

    def __gt__(self, other: Operand) -> "Value":
        return self._compare(other, "gt")

    def __ge__(self, other: Operand) -> "Value":
        return self._compare(other, "ge")

    def equals(self, other: Operand) -> "Value":
        return self._compare(other, "eq")

    def differs(self, other: Operand) -> "Value":
        """Not equal, and for floats also not NaN."""
        return self._compare(other, "ne")

    def is_nan(self) -> "Value":
        type_ = vector(lanes(self.type), I1) if lanes(self.type) else I1
        return self.function.emit(type_, f"fcmp uno {self.type} {self.text}, {self.text}")

    def convert(self, instruction: str, type_: str) -> "Value":
        """LLVM's `zext`, `sext`, `trunc`, `bitcast`, `sitofp`, …"""
        return self.function.emit(type_, f"{instruction} {self.type} {self.text} to {type_}")

    def where(self, yes: "Value", no: "Value") -> "Value":
        """`yes` where this condition holds, else `no`."""
        return self.function.emit(yes.type, f"select {self.type} {self.text}, {yes.type} {yes.text}, {no.type} {no.text}")

    def at(self, index: Operand, type_: str = F32) -> "Value":
        """The address of element `index` of this pointer to elements of `type_`."""
        text = index.text if isinstance(index, Value) else str(index)
        return self.function.emit(PTR, f"getelementptr {type_}, ptr {self.text}, i64 {text}")

    def load(self, type_: str, index: Operand = 0) -> "Value":
        """What stands at element `index`; a vector begins there."""
        place = self if isinstance(index, int) and index == 0 else self.at(index, element(type_))
        return self.function.emit(type_, f"load {type_}, ptr {place.text}, align {_size(element(type_))}")

    def store(self, value: "Value", index: Operand = 0) -> None:
        place = self if isinstance(index, int) and index == 0 else self.at(index, element(value.type))
        self.function.line(f"store {value.type} {value.text}, ptr {place.text}, align {_size(element(value.type))}")


def _size(type_: str) -> int:
    return {I1: 1, I8: 1, I16: 2, I32: 4, F32: 4, I64: 8, PTR: 8}[type_]


class Variable:
    """A value that changes, for example around a loop; LLVM keeps it in a register."""

    __slots__ = ("_place", "_type")

    def __init__(self, place: Value, initial: Value) -> None:
        self._place, self._type = place, initial.type
        self.value = initial

    @property
    def value(self) -> Value:
        return self._place.load(self._type)

    @value.setter
    def value(self, value: Value) -> None:
        self._place.store(value)


class Function:
    """The body of one function, which returns nothing; `Module.function` opens one."""

    def __init__(self, module: "Module") -> None:
        self.module = module
        self._allocas: list[str] = []
        self._lines: list[str] = []
        self._names = 0
        self._block = "entry"

    def text(self) -> str:
        return "\n".join(["entry:", *self._allocas, *self._lines, "ret void"])

    def line(self, text: str) -> None:
        self._lines.append(text)

    def name(self) -> str:
        self._names += 1
        return f"%v{self._names}"

    def emit(self, type_: str, text: str) -> Value:
        """The value of type `type_` that one instruction gives."""
        name = self.name()
        self.line(f"{name} = {text}")
        return Value(self, type_, name)

    def _open_block(self, label: str) -> None:
        self.line(f"{label}:")
        self._block = label

    def number(self, type_: str, number: float) -> Value:
        return Value(self, type_, constant(type_, number))

    def integer(self, number: int) -> Value:
        return self.number(I64, number)

    def variable(self, initial: Value) -> Variable:
        name = self.name()
        self._allocas.append(f"{name} = alloca {initial.type}")
        return Variable(Value(self, PTR, name), initial)

    def array(self, type_: str, count: int) -> Value:
        """The address of memory on the stack for so many."""
        name = self.name()
        self._allocas.append(f"{name} = alloca [{count} x {type_}], align 64")
        return Value(self, PTR, name)

    @contextmanager
    def loop(self, start: Operand, stop: Operand, step: Operand = 1) -> Iterator[Value]:
        """Counts an i64 from `start` to below `stop`."""
        first, last, by = (x.text if isinstance(x, Value) else str(x) for x in (start, stop, step))
        label = self.name()[1:]
        counter, following = Value(self, I64, self.name()), self.name()
        before = self._block
        self.line(f"br label %{label}.head")
        self._open_block(f"{label}.head")
        self.line(f"{counter.text} = phi i64 [{first}, %{before}], [{following}, %{label}.latch]")
        going = self.emit(I1, f"icmp slt i64 {counter.text}, {last}")
        self.line(f"br i1 {going.text}, label %{label}.body, label %{label}.exit")
        self._open_block(f"{label}.body")
        yield counter
        self.line(f"br label %{label}.latch")
        self._open_block(f"{label}.latch")
        self.line(f"{following} = add nsw i64 {counter.text}, {by}")
        self.line(f"br label %{label}.head")
        self._open_block(f"{label}.exit")

    @contextmanager
    def while_positive(self, variable: Variable) -> Iterator[None]:
        """Repeats while the i64 in `variable` is above 0."""
        label = self.name()[1:]
        self.line(f"br label %{label}.head")
        self._open_block(f"{label}.head")
        going = variable.value > 0
        self.line(f"br i1 {going.text}, label %{label}.body, label %{label}.exit")
        self._open_block(f"{label}.body")
        yield
        self.line(f"br label %{label}.head")
        self._open_block(f"{label}.exit")

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """Only where `condition` holds."""
        label = self.name()[1:]
        self.line(f"br i1 {condition.text}, label %{label}.then, label %{label}.exit")
        self._open_block(f"{label}.then")
        yield
        self.line(f"br label %{label}.exit")
        self._open_block(f"{label}.exit")

    def call(self, name: str, *arguments: Value) -> None:
        """A function of this module."""
        self.line(f"call void @{name}({', '.join(f'{x.type} {x.text}' for x in arguments)})")

    def intrinsic(self, name: str, type_: str, *arguments: Value, flags: str = "") -> Value:
        """An intrinsic of LLVM that gives a `type_`; declared as it is used first."""
        self.module.declare(f"declare {type_} @{name}({', '.join(x.type for x in arguments)})")
        listed = ", ".join(f"{x.type} {x.text}" for x in arguments)
        return self.emit(type_, f"call {flags} {type_} @{name}({listed})")

    def prefetch(self, place: Value) -> None:
        """Ask for the cache line at `place`, which need not be an address of ours, to be brought near."""
        self.module.declare("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        self.line(f"call void @llvm.prefetch.p0(ptr {place.text}, i32 0, i32 2, i32 1)")

    def atomic_add(self, place: Value, number: int) -> Value:
        """What an i64 in memory was before `number` was added to it, by one thread at a time."""
        return self.emit(I64, f"atomicrmw add ptr {place.text}, i64 {number} monotonic, align 8")

    def broadcast(self, scalar: Value, width: int) -> Value:
        type_ = vector(width, scalar.type)
        first = self.emit(type_, f"insertelement {type_} poison, {scalar.type} {scalar.text}, i32 0")
        return self.shuffle(first, first, [0] * width)

    def shuffle(self, a: Value, b: Value, picks: Sequence[int]) -> Value:
        """The lanes `picks` of a followed by b."""
        mask = ", ".join(f"i32 {pick}" for pick in picks)
        return self.emit(
            vector(len(picks), element(a.type)),
            f"shufflevector {a.type} {a.text}, {b.type} {b.text}, <{len(picks)} x i32> <{mask}>",
        )

    def lane_numbers(self, width: int) -> Value:
        """0, 1, … as a vector of i32."""
        return Value(self, vector(width, I32), f"<{', '.join(f'i32 {n}' for n in range(width))}>")

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a · b + c, rounded once where the processor can, else twice."""
        return self.intrinsic(f"llvm.fmuladd{_suffix(a.type)}", a.type, a, b, c)

    def absolute(self, x: Value) -> Value:
        return self.intrinsic(f"llvm.fabs{_suffix(x.type)}", x.type, x)

    def larger(self, a: Value, b: Value) -> Value:
        """The larger one; b if one of them is NaN."""
        return (a > b).where(a, b)

    def smaller(self, a: Value, b: Value) -> Value:
        """The smaller one; b if one of them is NaN."""
        return (a < b).where(a, b)

    def sum_of_lanes(self, x: Value) -> Value:
        """The lanes added in a fixed order."""
        zero = self.number(F32, -0.0)
        return self.intrinsic(f"llvm.vector.reduce.fadd{_suffix(x.type)}", F32, zero, x, flags="reassoc")

    def smallest_lane(self, x: Value) -> Value:
        """The smallest lane; NaN is passed over."""
        return self.intrinsic(f"llvm.vector.reduce.fmin{_suffix(x.type)}", F32, x)

    def largest_lane(self, x: Value) -> Value:
        """The largest lane; NaN is passed over."""
        return self.intrinsic(f"llvm.vector.reduce.fmax{_suffix(x.type)}", F32, x)


def _suffix(type_: str) -> str:
    letter = {F32: "f32", I64: "i64", I32: "i32", I16: "i16", I8: "i8"}[element(type_)]
    return f".v{lanes(type_)}{letter}" if lanes(type_) else f".{letter}"


class Module:
    """Functions and the intrinsics they use."""

    def __init__(self) -> None:
        self._functions: list[str] = []
        self._declarations: dict[str, None] = {}

    def declare(self, text: str) -> None:
        self._declarations[text] = None

    @contextmanager
    def function(self, name: str, parameters: Mapping[str, str], exported: bool = False) -> Iterator[list[Any]]:
        """Opens a function: `with module.function("f", {"a": PTR, "n": I64}) as (f, a, n): …`."""
        function = Function(self)
        values = [Value(function, type_, f"%{p}") for p, type_ in parameters.items()]
        yield [function, *values]
        listed = ", ".join(f"{type_} %{p}" for p, type_ in parameters.items())
        linkage = "" if exported else "internal "
        self._functions.append(f"define {linkage}void @{name}({listed}) #0 {{\n{function.text()}\n}}")

    def text(self) -> str:
        # No calls to the C library behind our back, and vectors as wide as they are written.
        attributes = 'attributes #0 = { nounwind noinline "no-builtins" "min-legal-vector-width"="512" }'
        return "\n\n".join([*self._functions, *self._declarations, attributes]) + "\n"
