"""x86's instructions for bytes and 16 bits in plain LLVM IR, so that code for longer vectors runs on any processor."""

import re

from inhibidistilbert.kernels.llvm.builder import I32, lanes, vector

_LIMITS = {"packssdw": (-(2**15), 2**15 - 1), "packsswb": (-128, 127), "packuswb": (0, 255)}


class _Body:
    """Of the function that stands for an instruction, whose parameters are %0, %1, …; values are vectors of i32."""

    def __init__(self, parameters: list[str]) -> None:
        self.parameters, self.lines = parameters, []

    def emit(self, text: str) -> str:
        self.lines.append(f"  %r{len(self.lines)} = {text}")
        return f"%r{len(self.lines) - 1}"

    def extended(self, number: int, how: str, kind: str | None = None) -> tuple[str, int]:
        """A parameter, as a vector of `kind`, and how many lanes it has."""
        x, given = f"%{number}", self.parameters[number]
        if kind is not None:
            x, given = self.emit(f"bitcast {given} {x} to {kind}"), kind
        return self.emit(f"{how} {given} {x} to {vector(lanes(given), I32)}"), lanes(given)

    def binary(self, instruction: str, n: int, a: str, b: str | int) -> str:
        b = b if isinstance(b, str) else f"<{', '.join([f'i32 {b}'] * n)}>"
        call = f"call {vector(n, I32)} @llvm.{instruction}.v{n}i32({vector(n, I32)} {a}, {vector(n, I32)} {b})"
        return self.emit(call if instruction in ("smin", "smax") else f"{instruction} {vector(n, I32)} {a}, {b}")

    def limited(self, x: str, n: int, least: int, most: int) -> str:
        return self.binary("smin", n, self.binary("smax", n, x, least), most)

    def picked(self, x: str, y: str, n: int, places: list[int]) -> str:
        mask = ", ".join(f"i32 {place}" for place in places)
        return self.emit(f"shufflevector {vector(n, I32)} {x}, {vector(n, I32)} {y}, {vector(len(places), I32)} <{mask}>")

    def products(self, a: tuple[str, int], b: tuple[str, int], added: int) -> str:
        """So many neighbours added."""
        n = a[1]
        x = self.binary("mul", n, a[0], b[0])
        parts = [self.picked(x, x, n, list(range(first, n, added))) for first in range(added)]
        total = parts[0]
        for part in parts[1:]:
            total = self.binary("add", n // added, total, part)
        return total

    def packed(self, name: str) -> str:
        """Narrowed by saturation, within each 128 bits."""
        (a, n), (b, _) = (
            self.extended(k, "sext") if "i16" in self.parameters[k] else (f"%{k}", lanes(self.parameters[k])) for k in (0, 1)
        )
        part = 8 if "i16" in self.parameters[0] else 4
        places = [side * n + first + k for first in range(0, n, part) for side in (0, 1) for k in range(part)]
        return self.limited(self.picked(a, b, n, places), 2 * n, *_LIMITS[name])


def _defined(found: re.Match[str]) -> str:
    result, name, listed = found.groups()
    body, n = _Body(parameters := re.findall(r"<[^>]*>", listed)), lanes(result)
    if "vpdpbusd" in name:
        four = vector(4 * n, "i8")
        x = body.binary("add", n, "%0", body.products(body.extended(1, "zext", four), body.extended(2, "sext", four), 4))
    elif "pmul.hr" in name:
        product = body.products(body.extended(0, "sext"), body.extended(1, "sext"), 1)
        x = body.binary("ashr", n, body.binary("add", n, product, 1 << 14), 15)
    elif "pmadd" in name and "ub" in name:
        sums = body.products(body.extended(0, "zext"), body.extended(1, "sext"), 2)
        x = body.limited(sums, n, -(2**15), 2**15 - 1)
    elif "pmadd" in name:
        x = body.products(body.extended(0, "sext"), body.extended(1, "sext"), 2)
    else:
        x = body.packed(name.split(".")[1])
    if result != vector(n, I32):
        x = body.emit(f"trunc {vector(n, I32)} {x} to {result}")
    signature = ", ".join(f"{kind} %{number}" for number, kind in enumerate(parameters))
    lines = "\n".join(body.lines)
    return f"define internal {result} @emulated.{name}({signature}) alwaysinline {{\n{lines}\n  ret {result} {x}\n}}"


def emulated(ir: str) -> str:
    """The module without instructions of x86 alone."""
    ir = re.sub(r"declare (<[^>]*>) @llvm\.x86\.([\w.]+)\((.*)\)", _defined, ir).replace("@llvm.x86.", "@emulated.")
    used = sorted(set(re.findall(r"@llvm\.smax\.v(\d+)i32", ir)), key=int)
    kinds = [(name, n, vector(int(n), I32)) for name in ("smin", "smax") for n in used]
    declared = "\n".join(f"declare {kind} @llvm.{name}.v{n}i32({kind}, {kind})" for name, n, kind in kinds)
    return f"{ir}\n{declared}\n"
