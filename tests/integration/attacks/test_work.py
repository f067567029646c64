"""Ordinary work goes on behind every wall and limit together, under a server that is root and one that is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess  # noqa: TID251 - a server of another user

import pytest

from tests.integration.attacks.conftest import identity, python_for
from tests.integration.hardening.test_ordinary_work import WORK

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

_SECONDS = 280
Done = dict[str, list[object]]


@pytest.fixture(scope="module", params=["as root", "as a user"])
def done(request: pytest.FixtureRequest) -> Done:
    root = request.param == "as root"
    if root and os.geteuid() != 0:
        pytest.skip("does not apply: only root has a server that is root")
    ran = subprocess.run(
        [python_for(root=root), "-m", "tests.integration.attacks.work"],
        capture_output=True, text=True, timeout=_SECONDS, check=False, **identity(root=root),
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    answers: Done = json.loads(ran.stdout)
    return answers


@pytest.mark.parametrize("name", WORK)
def test_it_goes_on(done: Done, name: str) -> None:
    needed = WORK[name][0]
    assert shutil.which(needed), (
        f"{needed} is not installed, so nothing was shown; install it (apt-get install {needed})"
    )
    code, output, errors = done[name]
    assert (code, str(output).split()[-1:]) == (0, ["ok"]), errors
