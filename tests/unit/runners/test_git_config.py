"""Paths that a git configuration sends git to."""

from __future__ import annotations

import os

import pytest

from sandbox_adapters.runners.git_config import paths_of_config


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("[core]\n\thooksPath = .hooks\n", ["/w/.hooks"]),
        ("[CORE]HOOKSPATH=/abs/../x", ["/x"]),
        ('[core]\nhookspath = "a b" ; c', ["/w/a b"]),
        ("[core]\nhookspath = a#b", ["/w/a"]),
        ('[core]\nhookspath = "a#b"', ["/w/a#b"]),
        ("[core]\nhooks\\\nPath = a", ["/w/a"]),
        ('[core]\nhookspath = "a\\"b"', ['/w/a"b']),
        ("[core]\nhookspath = ~/h", [os.path.expanduser("~/h")]),
        ("[core]\nworktree = ../other\nhookspath = h", ["/w/other/h"]),
        ('[include]\npath = x\n[includeIf "gitdir:~/a]b/"]\npath = y', ["/w/.git/x", "/w/.git/y"]),
        ("[core]\nhookspath =\n[user]\npath = x\n[alias]\nhookspath = y", []),
        ("# [core]\n;hookspath = x\n", []),
        ("[core.sub]\nhookspath = x", ["/w/x"]),
        ("\x00\xff[core\nhookspath", []),
    ],
)
def test_hooks_and_includes_are_found(text: str, paths: list[str]) -> None:
    assert list(paths_of_config(text, folder="/w/.git", worktree="/w")) == paths
