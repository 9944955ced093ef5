"""CUDA sources that do nothing but matrix instructions, of one-bit numbers and of bfloat16.

Both instructions of a pair read operands of the same bytes: 256 bits of a row are 16 bfloat16. One-bit: AND, then the bits
are counted. (PTX ISA, `mma` and `wgmma`.)
"""

from dataclasses import dataclass
from string import Template

THREADS = 256
_WARPS, _WARPGROUPS = THREADS // 32, THREADS // 128
# Independent sums of a warp, so that one instruction need not wait for the other.
_CHAINS = 8
# Instructions between two waits for their results.
_UNROLLED = 8


@dataclass(frozen=True)
class Instruction:
    """A matrix instruction, `(rows, inner)` times `(inner, columns)`.

    Attributes:
        name: `mma` (registers, any recent GPU) or `wgmma` (shared memory, sm_90a).
        bits: of an element, 1 or 16.
    """

    name: str
    bits: int

    @property
    def inner(self) -> int:
        return 256 // self.bits

    @property
    def operations(self) -> int:
        """Multiplications and additions of one instruction; of bits, ANDs and additions."""
        rows, columns = (16, 8) if self.name == "mma" else (64, 256)
        return 2 * rows * columns * self.inner

    @property
    def operand_words(self) -> int:
        """32-bit words that the kernel reads before it begins."""
        return 32 * 6 if self.name == "mma" else (64 + 256) * 8

    def instructions(self, blocks: int, rounds: int) -> int:
        """How many a launch executes."""
        a_round = _WARPS * _CHAINS if self.name == "mma" else _WARPGROUPS * _UNROLLED
        return blocks * rounds * a_round

    def total(self, rounds: int) -> int:
        """What a thread's sum must be where every element of the operands is 1."""
        return rounds * self.inner * (_CHAINS if self.name == "mma" else _UNROLLED)

    def source(self) -> str:
        """Kernel `rate(const unsigned* operands, <sum>* sums, int rounds)`, for blocks of `THREADS` threads.

        `sums` is int32 or float32, one a thread: enough of the result that nothing can be left out.
        """
        sum_type, letter = ("int", "r") if self.bits == 1 else ("float", "f")
        if self.name == "mma":
            kind = "m16n8k256.row.col.s32.b1.b1.s32.and.popc" if self.bits == 1 else "m16n8k16.row.col.f32.bf16.bf16.f32"
            return Template(_MMA).substitute(kind=kind, type=sum_type, letter=letter, chains=_CHAINS)
        sums = ", ".join(f"%{i}" for i in range(128))
        # bfloat16 takes flags: the signs of both operands (1 = as they are) and whether they are transposed (0 = no).
        kind, flags = (
            ("m64n256k256.s32.b1.b1.and.popc", "") if self.bits == 1 else ("m64n256k16.f32.bf16.bf16", ", 1, 1, 0, 0")
        )
        instruction = f'"wgmma.mma_async.sync.aligned.{kind} {{{sums}}}, %128, %129, p{flags};\\n"\n'
        outputs = ", ".join(f'"+{letter}"(c[{i}])' for i in range(128))
        return Template(_WGMMA).substitute(type=sum_type, instructions=_UNROLLED * instruction, outputs=outputs)


_MMA = """
extern "C" __global__ void rate(const unsigned* operands, $type* sums, int rounds) {
  const unsigned* mine = operands + 6 * (threadIdx.x % 32);
  unsigned a0 = mine[0], a1 = mine[1], a2 = mine[2], a3 = mine[3], b0 = mine[4], b1 = mine[5];
  $type c[$chains][4] = {};
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int i = 0; i < $chains; ++i)
      asm volatile("mma.sync.aligned.$kind {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                   : "+$letter"(c[i][0]), "+$letter"(c[i][1]), "+$letter"(c[i][2]), "+$letter"(c[i][3])
                   : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
  $type sum = 0;
#pragma unroll
  for (int i = 0; i < $chains; ++i) sum += c[i][0];
  sums[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
"""

# 64 rows of the left operand, then 256 columns of the right one, 32 bytes each, in blocks of 8 x 16 bytes without swizzling:
# the next block along a row 128 bytes on, the next 8 rows 256 bytes on.
_WGMMA = """
__device__ unsigned long long descriptor(unsigned address) {
  return (unsigned long long)((address & 0x3FFFF) >> 4) | (unsigned long long)(128 >> 4) << 16
         | (unsigned long long)(256 >> 4) << 32;
}

extern "C" __global__ void __launch_bounds__(256) rate(const unsigned* operands, $type* sums, int rounds) {
  __shared__ __align__(128) unsigned tiles[(64 + 256) * 8];
  for (int i = threadIdx.x; i < (64 + 256) * 8; i += blockDim.x) tiles[i] = operands[i];
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  unsigned start = (unsigned)__cvta_generic_to_shared(tiles);
  unsigned long long a = descriptor(start), b = descriptor(start + 64 * 32);
  $type c[128] = {};
  for (int round = 0; round < rounds; ++round)
    asm volatile("{\\n"
        ".reg .pred p;\\n"
        "setp.eq.u32 p, 0, 0;\\n"
        "wgmma.fence.sync.aligned;\\n"
        $instructions
        "wgmma.commit_group.sync.aligned;\\n"
        "wgmma.wait_group.sync.aligned 0;\\n"
        "}\\n"
        : $outputs
        : "l"(a), "l"(b) : "memory");
  sums[blockIdx.x * blockDim.x + threadIdx.x] = c[0];
}
"""
