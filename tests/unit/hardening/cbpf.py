"""A small interpreter of classic BPF as seccomp runs it, written from the kernel's description of the machine.

See networking/filter.rst and userspace-api/seccomp_filter.rst. It knows nothing of how the filter was built.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence


class BadProgram(Exception):
    """The kernel would refuse the program, or it runs off its end."""


def run(program: bytes, *, machine: int, number: int, arguments: Sequence[int] = ()) -> tuple[int, int]:
    """Return the action for one call and how many instructions it took."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<iIQ6Q", _signed(number), machine, 0x1000, *padded)
    instructions = list(struct.iter_unpack("<HBBI", program))
    accumulator = position = steps = 0
    while position < len(instructions):
        code, jump_true, jump_false, k = instructions[position]
        position += 1
        steps += 1
        match code:
            case 0x20:
                if k % 4 or k + 4 > len(data):
                    raise BadProgram(f"load at {k}")
                (accumulator,) = struct.unpack_from("<I", data, k)
            case 0x54:
                accumulator &= k
            case 0x05:
                position += k
            case 0x15:
                position += jump_true if accumulator == k else jump_false
            case 0x35:
                position += jump_true if accumulator >= k else jump_false
            case 0x45:
                position += jump_true if accumulator & k else jump_false
            case 0x06:
                return k, steps
            case _:
                raise BadProgram(f"instruction {code:#x}")
    raise BadProgram("no return")


def _signed(number: int) -> int:
    return (number & 0xFFFFFFFF) - ((number & 0x80000000) << 1)
