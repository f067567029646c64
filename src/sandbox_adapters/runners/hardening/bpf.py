"""Classic BPF for seccomp, put together from nested pieces instead of labels.

A piece is a tuple of instructions that always ends in a `ret`. All jumps go forward, which is what the kernel asks of
a filter, so a piece can be placed anywhere. Only instructions that the kernel can follow ahead of time are
used where the argument of a call does not matter: then it answers an allowed call from a bitmap without running the
filter (seccomp_is_const_allow in kernel/seccomp.c, since 5.11).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

LOAD = 0x20
"""BPF_LD | BPF_W | BPF_ABS: A = 32 bits of struct seccomp_data at offset k."""
AND = 0x54
"""BPF_ALU | BPF_AND | BPF_K: A &= k."""
JUMP = 0x05
"""BPF_JMP | BPF_JA: go k instructions further on; k has 32 bits."""
EQUAL = 0x15
"""BPF_JMP | BPF_JEQ | BPF_K: A == k?"""
AT_LEAST = 0x35
"""BPF_JMP | BPF_JGE | BPF_K: A >= k, unsigned?"""
ANY_BIT = 0x45
"""BPF_JMP | BPF_JSET | BPF_K: A & k?"""
RETURN = 0x06
"""BPF_RET | BPF_K."""

MAX_INSTRUCTIONS = 4096
"""BPF_MAXINSNS."""

OFFSET_NUMBER, OFFSET_MACHINE = 0, 4
_OFFSET_ARGUMENTS = 16
_LONGEST_BRANCH = 255

Instruction = tuple[int, int, int, int]
"""Code, jump when true, jump when false, k: the fields of struct sock_filter."""
Piece = tuple[Instruction, ...]

_SOCK_FILTER = struct.Struct("=HBBI")


def ret(action: int) -> Piece:
    """End with a SECCOMP_RET_* value."""
    return ((RETURN, 0, 0, action),)


def load(offset: int) -> Piece:
    """A = the 32 bits at `offset` of struct seccomp_data. To be put in front of a piece."""
    return ((LOAD, 0, 0, offset),)


def load_argument(index: int) -> Piece:
    """A = the low 32 bits of argument `index` (0 to 5) on a little-endian machine; all that the kernel takes of an int.

    Comparing all 64 would let a caller past with garbage in the upper half.
    """
    return load(_OFFSET_ARGUMENTS + 8 * index)


def keep_bits(mask: int) -> Piece:
    """A &= mask. To be put in front of a piece."""
    return ((AND, 0, 0, mask),)


def branch(test: int, value: int, then: Piece, otherwise: Piece) -> Piece:
    """Go on with `then` when `test` of A and `value` holds, else with `otherwise`.

    The offset of a conditional jump has 8 bits; past that an unconditional one, with 32, carries on.
    """
    if len(otherwise) <= _LONGEST_BRANCH:
        return ((test, len(otherwise), 0, value), *otherwise, *then)
    return ((test, 0, 1, value), (JUMP, 0, 0, len(otherwise)), *otherwise, *then)


def one_of(values: Sequence[int], then: Piece, otherwise: Piece) -> Piece:
    """Go on with `then` when A is one of `values`. `then` stands in the program once for each, so keep it short."""
    piece = otherwise
    for value in reversed(values):
        piece = branch(EQUAL, value, then, piece)
    return piece


def switch(cases: Mapping[int, Piece], default: Piece) -> Piece:
    """Find A among `cases` by halving, so that it takes about log2 of their number of comparisons.

    Neighbouring numbers with the same piece count as one range.
    """
    starts: list[tuple[int, Piece]] = [(0, default)]
    for number in sorted(cases):
        if starts[-1][0] == number:
            starts[-1] = (number, cases[number])
        elif starts[-1][1] != cases[number]:
            starts.append((number, cases[number]))
        if number + 1 not in cases:
            starts.append((number + 1, default))
    return _halve(starts)


def pack(program: Piece) -> bytes:
    """Return an array of struct sock_filter in the machine's byte order. Raises ValueError when it is too long."""
    if len(program) > MAX_INSTRUCTIONS:
        raise ValueError(f"{len(program)} instructions; the kernel takes {MAX_INSTRUCTIONS}")
    return b"".join(_SOCK_FILTER.pack(*instruction) for instruction in program)


def _halve(starts: Sequence[tuple[int, Piece]]) -> Piece:
    if len(starts) == 1:
        return starts[0][1]
    middle = len(starts) // 2
    return branch(AT_LEAST, starts[middle][0], _halve(starts[middle:]), _halve(starts[:middle]))
