"""What looks at the whole machine, or at times, runs one after the other; every other file may run beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tracks import BESIDE, track_of

TESTS = Path(__file__).parents[2]


def test_every_folder_that_is_named_is_there() -> None:
    assert all((TESTS / folder).is_dir() for folder in BESIDE)


@pytest.mark.parametrize("folder", ["attacks", "egress", "hardening", "redis", "replicas", "runners", "workers"])
def test_real_walls_and_faults_stay_together(folder: str) -> None:
    files = sorted((TESTS / "integration" / folder).glob("test_*.py"))
    assert {track_of(f"{file.relative_to(TESTS.parent)}::test_it[a::b]") for file in files} == {"alone"}


@pytest.mark.parametrize("folder", BESIDE)
def test_a_file_of_the_others_is_a_track_of_its_own(folder: str) -> None:
    files = [file.relative_to(TESTS.parent).as_posix() for file in (TESTS / folder).rglob("test_*.py")]
    assert [track_of(f"{file}::TestIt::test_it") for file in files] == files != []
