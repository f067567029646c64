"""What looks at the whole machine runs one after the other, so does what looks at times; the rest runs beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tracks import BESIDE, FLEETS, track_of

TESTS = Path(__file__).parents[2]


def test_every_folder_that_is_named_is_there() -> None:
    assert all((TESTS / folder).is_dir() for folder in (*BESIDE, *FLEETS))


@pytest.mark.parametrize(
    ("track", "folders"),
    [("walls", ("integration/attacks", "integration/hardening", "integration/runners")), ("fleets", FLEETS)],
)
def test_real_walls_stay_together_and_so_do_faults(track: str, folders: tuple[str, ...]) -> None:
    for folder in folders:
        files = sorted((TESTS / folder).glob("test_*.py"))
        assert {track_of(f"{file.relative_to(TESTS.parent)}::test_it[a::b]") for file in files} == {track}


@pytest.mark.parametrize("folder", BESIDE)
def test_a_file_of_the_others_is_a_track_of_its_own(folder: str) -> None:
    files = [file.relative_to(TESTS.parent).as_posix() for file in (TESTS / folder).rglob("test_*.py")]
    assert [track_of(f"{file}::TestIt::test_it") for file in files] == files != []
