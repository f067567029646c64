"""The systemd units: systemd takes them, nothing in them forbids a sandbox, and they leave the server time to drain."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess  # noqa: TID251  # systemd judges its own units
import sys
from pathlib import Path

import pytest

from sandbox_adapters.settings import Settings

ROOT = Path(__file__).parents[3]
SYSTEMD = ROOT / "deploy" / "systemd"
UNITS = ("sandbox@.service", "sandbox-worker@.service")
KILL_GRACE_SECONDS = float(Settings.model_fields["kill_grace_seconds"].default)
FORBIDS = {
    "RestrictNamespaces": "No permissions to creating new namespace",
    "ProtectHostname": "Can't set hostname to sandbox",
    "ProtectKernelTunables": "Can't mount proc",
    "ProtectKernelLogs": "Can't mount proc",
    "ProcSubset": "Can't read /proc/sys/kernel/overflowuid",
    "SystemCallFilter": "a command exits 159",
    "ProtectControlGroups": "no limits for whole executions",
    "RestrictSUIDSGID": "no openat2, so no grant of files",
    "DynamicUser": "brings RestrictSUIDSGID along",
}
"""What was tried under systemd 257, and what came of it."""


def assignments(name: str) -> dict[str, str]:
    """Return what a unit sets, a directive that stands twice with its last value."""
    return dict(re.findall(r"^(\w+)=(.*)$", (SYSTEMD / name).read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", UNITS)
def test_systemd_takes_the_unit(name: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("does not apply: this machine has no systemd")
    program = Path(sys.executable).with_name("sandbox")
    unit = tmp_path / name.replace("@", "@8080")
    text = (SYSTEMD / name).read_text().replace("/opt/sandbox/bin/sandbox", str(program))
    told = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, check=True).stdout
    if int(told.split()[1].split(".")[0]) < 254:  # it ignores what it does not know, and says so
        text = re.sub(r"^DelegateSubgroup=.*\n", "", text, flags=re.MULTILINE)
    unit.write_text(text)
    said = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", str(unit)], capture_output=True, text=True, check=False
    )
    ours = [line for line in (said.stdout + said.stderr).splitlines() if unit.name in line or str(unit) in line]
    assert ours == []
    assert said.returncode == 0, said.stderr


@pytest.mark.parametrize("name", UNITS)
def test_nothing_in_a_unit_forbids_what_a_sandbox_is_made_of(name: str) -> None:
    assert {key: FORBIDS[key] for key in assignments(name) if key in FORBIDS} == {}


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_runs_as_nobody_in_particular(name: str) -> None:
    unit = assignments(name)
    assert unit["User"] == "sandbox"
    assert (unit["NoNewPrivileges"], unit["CapabilityBoundingSet"]) == ("yes", "")
    assert (unit["ProtectSystem"], unit["ProtectHome"], unit["PrivateTmp"]) == ("strict", "yes", "yes")


@pytest.mark.parametrize("name", UNITS)
def test_the_unit_s_server_is_below_the_group_that_it_was_delegated(name: str) -> None:
    """In version 2 a group with processes in it cannot give controllers to others: cgroups(7)."""
    unit = assignments(name)
    assert unit["Delegate"] == "memory pids cpu"
    assert re.fullmatch(r"\w+", unit["DelegateSubgroup"])


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_gives_the_server_time_to_drain(name: str) -> None:
    unit = assignments(name)
    grace = re.search(r"SANDBOX_DRAIN_GRACE_SECONDS=(\d+)", unit["Environment"])
    assert grace is not None
    assert float(unit["TimeoutStopSec"]) > float(grace[1]) + 2 * KILL_GRACE_SECONDS


def test_a_worker_s_grace_is_what_an_execution_may_take() -> None:
    grace = re.search(r"SANDBOX_DRAIN_GRACE_SECONDS=(\d+)", assignments("sandbox-worker@.service")["Environment"])
    assert grace is not None
    assert float(grace[1]) >= float(Settings.model_fields["timeout"].default)


def test_both_units_have_the_same_walls() -> None:
    own = {"Description", "EnvironmentFile", "Environment", "ExecStart", "TimeoutStopSec"}
    server, worker = ({key: value for key, value in assignments(name).items() if key not in own} for name in UNITS)
    assert server == worker


def test_the_script_installs_everything_and_never_over_settings(tmp_path: Path) -> None:
    stubs, root = tmp_path / "stubs", tmp_path / "root"
    stubs.mkdir()
    (root / "etc/systemd/system").mkdir(parents=True)
    log = tmp_path / "called"
    for name in ("id", "useradd", "systemctl", "pip"):
        (stubs / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\ntest {name} != id\n')
    (stubs / "python3").write_text(f'#!/bin/sh\nmkdir -p "$3/bin" && cp {stubs}/pip "$3/bin/"\n')
    for stub in stubs.iterdir():
        stub.chmod(0o755)
    text = re.sub(
        r"(?<= )/(?=opt/|etc/)|^/(?=opt/)", f"{root}/", (SYSTEMD / "install.sh").read_text(), flags=re.MULTILINE
    )
    settings = root / "etc/sandbox/sandbox.env"
    for _ in range(2):
        subprocess.run(
            ["sh", "-c", text], cwd=ROOT, env={"PATH": f"{stubs}:{os.environ['PATH']}"}, check=True, capture_output=True
        )
        assert stat.S_IMODE(settings.stat().st_mode) == 0o600
        settings.write_text("REDIS_URL=mine\n")
    assert settings.read_text() == "REDIS_URL=mine\n"
    assert {path.name for path in (root / "etc/systemd/system").iterdir()} == set(UNITS)
    for name in UNITS:
        assert (root / assignments(name)["EnvironmentFile"].lstrip("/")).exists()
        assert assignments(name)["ExecStart"].startswith("/opt/sandbox/bin/sandbox ")
    called = log.read_text()
    assert called.count("useradd --system --no-create-home --shell /usr/sbin/nologin sandbox\n") == 2
    assert called.count("systemctl daemon-reload\n") == 2
    assert "pip install --require-hashes -r requirements/runtime.txt\n" in called
