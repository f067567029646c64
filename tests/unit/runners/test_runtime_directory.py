"""Where the runtime directory can be, and what is said when it can be nowhere."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from sandbox_adapters.runners import runtime_directory
from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.runtime_directory import NoPlace, RuntimeDirectory
from sandbox_core.domain.errors import RunnerUnavailable


@pytest.fixture
def noexec(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file system is mounted noexec."""
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_NOEXEC))


def test_a_place_that_can_be_used_is_taken(tmp_path: Path) -> None:
    directory = RuntimeDirectory.create(reachable=False, base=str(tmp_path))
    try:
        assert Path(directory.path).parent == tmp_path
    finally:
        directory.close()


@pytest.mark.usefixtures("noexec")
def test_each_place_is_told_with_its_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_directory, "_places", lambda: [str(tmp_path), "/elsewhere"])
    with pytest.raises(NoPlace, match=f"we can execute from: {tmp_path} is mounted noexec, /elsewhere is"):
        RuntimeDirectory.create(reachable=False)


def test_a_place_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(NoPlace) as raised:
        RuntimeDirectory.create(reachable=True, base=str(tmp_path / "none"))
    assert raised.value.lacks == {str(tmp_path / "none"): "No such file or directory"}


def test_where_nothing_can_be_written_at_all_each_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", list)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_RDONLY))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(NoPlace, match="/tmp is read-only, /var/tmp is read-only"):
        RuntimeDirectory.create(reachable=False)


@pytest.mark.anyio
@pytest.mark.usefixtures("noexec")
async def test_people_are_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunnerUnavailable) as raised:
        async with BubblewrapRunner(runtime_base=str(tmp_path)):
            pass
    assert "TMPDIR" in raised.value.fix
    assert "/tmp:exec" in raised.value.fix
