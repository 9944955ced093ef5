"""Compiled calls one after the other, in one call: each thread goes on to the next as soon as nothing is left of one."""

from .inhibitor_llvm_jit import Machine

_IR = """
define void @each_block(ptr %list) #0 {
entry:
  %callee = load ptr, ptr %list
  %count_at = getelementptr i64, ptr %list, i64 1
  %count = load i64, ptr %count_at
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %following, %body ]
  %done = icmp sge i64 %i, %count
  br i1 %done, label %end, label %body
body:
  %number = add i64 %i, 2
  %block_at = getelementptr ptr, ptr %list, i64 %number
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
    """The module that exports `each_block(list)`: words of the address of a function, how many blocks there are, and the
    address of each."""
    return _IR
