"""Names of files that programs on the host run, or obey, because of where they lie. Pure.

Such a name in a granted directory is as good as a command on the host: a hook of git, a shell's profile, a task of an
editor, a server of an agent. What a project runs because somebody asks for it (a Makefile, a test, a package's scripts)
is ordinary work and not here.
"""

from __future__ import annotations

import re

GIT = ".git"

_ANYWHERE_TEXT = """
    .bashrc .bash_profile .bash_login .bash_logout .bash_aliases .profile .zshrc .zshenv .zprofile .zlogin .zlogout
    .kshrc .mkshrc .cshrc .tcshrc .login .logout .inputrc .xinitrc .xsession .xsessionrc .xprofile .pam_environment
    .gitconfig .ssh .gnupg .screenrc .tmux.conf .gdbinit .lldbinit .pdbrc .rprofile .irbrc
    .vimrc .exrc .nvimrc .nvim.lua .vim .emacs .emacs.d .dir-locals.el .dir-locals-2.el
    .vscode .idea .vs .fleet .zed .helix .devcontainer .devcontainer.json
    .claude .claude.json .mcp.json .cursor .codex .gemini .continue .windsurf .roo .aider.conf.yml
    .clinerules .kiro .amazonq .qwen .opencode opencode.json opencode.jsonc
    .envrc .mise.toml mise.toml .npmrc .yarnrc .yarnrc.yml .pnpmfile.cjs .pypirc .netrc
    .husky .githooks .pre-commit-config.yaml lefthook.yml .lefthook.yml
"""
ANYWHERE = frozenset(_ANYWHERE_TEXT.split())
"""Protected in every directory, in this order of subjects: shells and sessions, tools that read a file of the working
directory or the home directory, editors, agents, tools that a prompt or a package manager starts, hooks of git."""

_BELOW = {
    ".config": frozenset({"git", "fish", "nvim", "autostart", "systemd", "environment.d", "direnv", "mise", "zed"}),
    ".cargo": frozenset({"config", "config.toml"}),
    ".local": frozenset({"bin"}),
}
_SUFFIXES = (".code-workspace",)
_RUNTIME_DIRECTORIES = "sandbox-runner-"
"""What `runtime_directory.PREFIX` is: the next server does what one that it finds says is left to do."""
_GIT_OWN = frozenset({"hooks", "config", "config.worktree", "commondir"})
_WORKTREE_OWN = frozenset({"config.worktree", "commondir"})
GIT_LAYOUT = ("HEAD", "objects", "refs")
"""A directory that has these is a git directory to git, whatever it is called."""
WORKTREE_LAYOUT = ("HEAD", "commondir")
"""And one that has these, when the other that `commondir` names has the rest, and the configuration."""

_IGNORED = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8]"
)
"""What a file system that ignores case leaves out when it compares names."""


def folded(name: str) -> str:
    """Return a name as a file system that ignores case compares it; a few more count as equal than would there."""
    return (name if name.isascii() else _IGNORED.sub("", name)).casefold()


def is_protected(name: str, parent: str = "") -> bool:
    """True for a name that is protected in any directory, or in one called `parent`."""
    name = folded(name)
    if name == GIT or name in ANYWHERE or name.endswith(_SUFFIXES) or name.startswith(_RUNTIME_DIRECTORIES):
        return True
    below = _BELOW.get(folded(parent))
    return below is not None and name in below


def is_protected_in_git(name: str) -> bool:
    """True for a name directly in a git directory (gitrepository-layout(5)) that says what git executes."""
    return folded(name) in _GIT_OWN


def is_protected_in_worktree(name: str) -> bool:
    """True for such a name in a directory below `worktrees` of a git directory."""
    return folded(name) in _WORKTREE_OWN


def protected_part(path: str) -> str | None:
    """Return the first protected component of an absolute path, None when there is none."""
    parent = ""
    for name in path.split("/"):
        if name and is_protected(name, parent):
            return name
        parent = name
    return None
