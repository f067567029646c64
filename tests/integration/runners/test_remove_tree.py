"""Hostile trees are removed whole, and nothing outside them is touched."""

from __future__ import annotations

import os
from pathlib import Path

from sandbox_adapters.runners.child.remove_tree import remove_tree

_DEPTH = 3000


def test_a_very_deep_tree_is_removed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(_DEPTH):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    remove_tree(str(top))
    assert not top.exists()


def test_links_are_not_followed_and_closed_directories_are_opened(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o500)
    (tmp_path / "kept").write_text("kept")
    top = tmp_path / "top"
    (top / "closed" / "inner").mkdir(parents=True)
    (top / "closed" / "inner" / "file").write_text("x")
    (top / "link").symlink_to(outside)
    (top / "closed" / "link").symlink_to(tmp_path / "kept")
    (top / "closed" / "inner").chmod(0)
    (top / "closed").chmod(0)
    remove_tree(str(top))
    assert not top.exists()
    assert outside.stat().st_mode & 0o777 == 0o500
    assert (tmp_path / "kept").read_text() == "kept"


def test_a_missing_tree_is_no_error(tmp_path: Path) -> None:
    remove_tree(str(tmp_path / "missing"))
    assert list(tmp_path.iterdir()) == []
