"""Each execution of a server that is root gets a uid that its user namespace has, and that nobody else is."""

from __future__ import annotations

import pytest

from sandbox_adapters.runners.uid_range import Extent, NoUids, choose, read_map

_ALL = [(0, 4294967295)]
_USUAL = (1 << 30, 1 << 29)


@pytest.mark.parametrize(
    ("uids", "gids", "chosen"),
    [
        (_ALL, _ALL, _USUAL),
        ([(0, 65536)], [(0, 65536)], (32768, 32765)),
        ([(0, 65536)], _ALL, (32768, 32765)),
        ([(0, 1), (1, 65536)], [(0, 1), (1, 65536)], (32769, 32764)),
        ([(0, 1000), (100000, 4096)], [(0, 4294967295)], (102048, 2048)),
        ([(0, 131072)], [(0, 65536)], (32768, 32765)),
    ],
)
def test_high_ids_that_are_both_uids_and_gids_are_taken(uids: list[Extent], gids: list[Extent], chosen: Extent) -> None:
    assert choose(uids, gids) == chosen


@pytest.mark.parametrize("uids", [[], [(0, 1)], [(0, 2000)], [(0, 1), (1000, 1)]])
def test_too_few_are_refused_with_what_to_do(uids: list[Extent]) -> None:
    with pytest.raises(NoUids, match="map 2048 or more"):
        choose(uids, _ALL)


def test_a_map_is_read_as_the_kernel_writes_it() -> None:
    assert read_map(["         0     100000      65536\n", "     70000          1          1\n"]) == [
        (0, 65536),
        (70000, 1),
    ]
