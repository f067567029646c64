"""Pieces of classic BPF put together mean what they say, also past the reach of a short jump."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_adapters.runners.hardening import bpf
from tests.unit.hardening import cbpf

_LONG = bpf.keep_bits(0xFFFFFFFF) * 300


def action(piece: bpf.Piece, number: int) -> int:
    return cbpf.run(bpf.pack(bpf.load(bpf.OFFSET_NUMBER) + piece), machine=0, number=number)[0]


@pytest.mark.parametrize("then", [bpf.ret(1), _LONG + bpf.ret(1)])
@pytest.mark.parametrize(
    "otherwise", [bpf.ret(2), _LONG[:254] + bpf.ret(2), _LONG[:255] + bpf.ret(2), _LONG + bpf.ret(2)]
)
def test_branch_of_any_length(then: bpf.Piece, otherwise: bpf.Piece) -> None:
    piece = bpf.branch(bpf.AT_LEAST, 100, then, otherwise)
    assert [action(piece, number) for number in (0, 99, 100, 5000)] == [2, 2, 1, 1]


@given(
    cases=st.dictionaries(st.integers(0, 600), st.integers(1, 4), max_size=400),
    numbers=st.lists(st.integers(0, 2**31 - 1) | st.integers(0, 610), min_size=1, max_size=50),
)
def test_switch_finds_every_number(cases: dict[int, int], numbers: list[int]) -> None:
    piece = bpf.switch({number: bpf.ret(value) for number, value in cases.items()}, bpf.ret(9))
    for number in numbers:
        assert action(piece, number) == cases.get(number, 9)


def test_switch_over_more_cases_than_a_short_jump_reaches_takes_few_comparisons() -> None:
    program = bpf.pack(bpf.load(0) + bpf.switch({number: bpf.ret(number) for number in range(1000)}, bpf.ret(5000)))
    for number in range(1000):
        found, steps = cbpf.run(program, machine=0, number=number)
        assert found == number
        assert steps <= 2 + 2 * 10


def test_program_longer_than_the_kernel_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="4096"):
        bpf.pack(bpf.keep_bits(1) * 4096 + bpf.ret(0))
