"""Which names are protected."""

from __future__ import annotations

import pytest

from sandbox_adapters.runners.child.protected_names import (
    is_protected,
    is_protected_in_git,
    is_protected_in_worktree,
    protected_part,
)


@pytest.mark.parametrize(
    "name",
    [".git", ".bashrc", ".BashRC", ".zshenv", ".envrc", ".npmrc", ".vscode", ".idea", ".claude", ".mcp.json", ".cursor",
     ".pre-commit-config.yaml", ".husky", "x.code-workspace", ".g\u200dit", ".\ufeffenvrc", ".\u017fsh", ".Git"],
)  # fmt: skip
def test_protected_everywhere(name: str) -> None:
    assert is_protected(name)


@pytest.mark.parametrize(
    "name",
    [
        "Makefile",
        "package.json",
        ".gitignore",
        ".github",
        ".env",
        "git",
        "bashrc",
        ".config",
        "AGENTS.md",
        "hooks",
        "...",
    ],
)
def test_ordinary_work_is_not_protected(name: str) -> None:
    assert not is_protected(name)


def test_some_names_are_protected_in_one_directory_only() -> None:
    assert is_protected("fish", ".config")
    assert is_protected("config.toml", ".Cargo")
    assert not is_protected("fish", "src")
    assert not is_protected("config.toml")
    assert is_protected_in_git("hooks")
    assert is_protected_in_git("CommonDir")
    assert not is_protected_in_git("HEAD")
    assert is_protected_in_worktree("config.worktree")
    assert not is_protected_in_worktree("hooks")


def test_the_protected_part_of_a_path_is_named() -> None:
    assert protected_part("/home/u/.config/fish/x") == "fish"
    assert protected_part("/srv/a/.git/hooks") == ".git"
    assert protected_part("/srv/a/b") is None
