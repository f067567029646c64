"""`sandbox doctor`: findings, fixes and the exit code."""

from __future__ import annotations

import json
import subprocess  # noqa: TID251  # the command line is a program
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., subprocess.CompletedProcess[bytes]]

pytestmark = pytest.mark.integration


def diagnosis(done: subprocess.CompletedProcess[bytes]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    found = json.loads(done.stdout)
    return found, {check["name"]: check for check in found["checks"]}


def test_it_finds_a_bwrap_that_passes_and_looks_at_every_mechanism(cli: Cli) -> None:
    done = cli("doctor", "--json")
    found, findings = diagnosis(done)
    assert done.returncode == 0, done.stderr
    assert (found["runner"], found["works"], found["unknown_variables"]) == ("bubblewrap", True, [])
    assert any(name.startswith("bubblewrap") and item["ok"] for name, item in findings.items())
    assert {"platform", "user namespaces", "seccomp", "Landlock"} <= set(findings)
    assert any(name.startswith("cgroup") for name in findings)
    assert (findings["Redis"]["ok"], findings["Redis"]["in_use"]) == (True, False)
    assert "REDIS_URL" in findings["Redis"]["fix"]
    assert all(item["fix"] for item in findings.values() if not item["ok"])


def test_people_get_a_table(cli: Cli) -> None:
    done = cli("doctor", COLUMNS="200")
    text = done.stdout.decode()
    assert done.returncode == 0
    assert all(word in text for word in ("bubblewrap", "self-test passed", "user namespaces", "seccomp", "Landlock"))
    assert "Set REDIS_URL" in text
    assert "The bubblewrap runner can work here." in text


def test_a_runner_that_cannot_work_exits_1_with_the_fix(cli: Cli, tmp_path: Path) -> None:
    false_bwrap = tmp_path / "bwrap"
    false_bwrap.write_text('#!/bin/sh\n[ "$1" = --version ] && echo bubblewrap 0.11.0 && exit 0\nexit 1\n')
    false_bwrap.chmod(0o755)
    for path in (str(false_bwrap), "/no/such/bwrap"):
        done = cli("doctor", "--json", SANDBOX_BWRAP_PATH=path)
        found, findings = diagnosis(done)
        assert done.returncode == 1
        assert not found["works"]
        assert not findings["bubblewrap (configured)"]["ok"]
        assert findings["bubblewrap (configured)"]["fix"]


def test_the_local_runner_works_without_a_bwrap_and_says_what_it_is(cli: Cli) -> None:
    done = cli("doctor", "--json", "--runner", "local", SANDBOX_BWRAP_PATH="/no/such/bwrap")
    found, findings = diagnosis(done)
    assert (done.returncode, found["works"]) == (0, True)
    assert "isolates nothing" in findings["local runner"]["detail"]


@pytest.mark.parametrize("url", ["redis://user:s3cret@127.0.0.1:1/0", "gopher://:s3cret@x", "redis://:s3cret@h:port"])
def test_a_redis_that_does_not_answer_is_named_without_its_password(cli: Cli, url: str) -> None:
    done = cli("doctor", "--json", REDIS_URL=url)
    _, findings = diagnosis(done)
    assert not findings["Redis"]["ok"]
    assert b"s3cret" not in done.stdout + done.stderr
    assert done.returncode == 0


def test_a_misspelt_variable_is_named(cli: Cli) -> None:
    found, _ = diagnosis(cli("doctor", "--json", SANDBOX_MAX_CONCURENT="3"))
    assert "SANDBOX_MAX_CONCURRENT" in found["unknown_variables"][0]


def test_it_shows_what_a_server_with_these_settings_can_enforce(cli: Cli) -> None:
    done = cli(
        "doctor",
        "--json",
        SANDBOX_CEILING='{"resource_limits": {"max_memory_mb": 99}, "isolation": {"require": ["seccomp"]}}',
    )
    found, _ = diagnosis(done)
    able = found["capabilities"]
    assert (able["runner"], able["isolated"], able["network"]) == ("bubblewrap", True, "none")
    assert {"seccomp", "pid", "net"} <= set(able["layers"])
    assert len(able["facts"]["seccomp_sha256"]) == 64
    assert able["defaults"]["resource_limits"]["max_memory_mb"] == 99
    assert able["ceiling"]["isolation"] == {"require": ["seccomp"]}
    text = cli("doctor", COLUMNS="400").stdout.decode()
    assert able["facts"]["seccomp_sha256"] in text
    assert "grants: network " in text


def test_settings_that_no_server_could_start_with_are_a_finding(cli: Cli) -> None:
    done = cli("doctor", "--json", SANDBOX_CEILING='{"isolation": {"require": ["moat"]}}')
    found, findings = diagnosis(done)
    assert (done.returncode, found["works"], found["capabilities"]) == (1, False, None)
    assert "asked moat" in findings["settings"]["detail"]
    assert findings["settings"]["fix"]
