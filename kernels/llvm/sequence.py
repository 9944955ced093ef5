"""Compiled calls one after the other, in one call: each thread goes on to the next as soon as nothing is left of one."""

from .jit import Machine

_IR = """
define void @each_block(ptr %list) #0 {
entry:
  %count = load i64, ptr %list
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %following, %body ]
  %done = icmp sge i64 %i, %count
  br i1 %done, label %end, label %body
body:
  %twice = shl i64 %i, 1
  %callee_number = or i64 %twice, 1
  %callee_at = getelementptr ptr, ptr %list, i64 %callee_number
  %callee = load ptr, ptr %callee_at
  %block_number = add i64 %twice, 2
  %block_at = getelementptr ptr, ptr %list, i64 %block_number
  %block = load ptr, ptr %block_at
  call void %callee(ptr %block)
  %following = add i64 %i, 1
  br label %next
end:
  ret void
}

attributes #0 = { nounwind }
"""


def each_block_ir(machine: Machine) -> str:
    """The module that exports `each_block(list)`: words of how many calls there are, and of each the addresses of a
    function and of its block."""
    return _IR
