"""What a Last-Event-ID may be: a place that we can have named."""

from __future__ import annotations

import pytest

from sandbox_mcp.resumption import Place

WHERE = f"{'a' * 32}/{'b' * 32}"


def test_a_place_that_we_named_is_read_as_it_was() -> None:
    place = Place.parse(f"{WHERE}/{2**64 - 1}-7")
    assert place == Place("a" * 32, "b" * 32, f"{2**64 - 1}-7")
    assert place.at("1-2") == f"{WHERE}/1-2"


@pytest.mark.parametrize("entry", [f"{2**64}-0", f"0-{2**64}", "0", "-", "+", "(0-1", "0-1\n", "\u0660-1", ""])
def test_what_redis_would_refuse_or_take_otherwise_is_no_place(entry: str) -> None:
    assert Place.parse(f"{WHERE}/{entry}") is None
