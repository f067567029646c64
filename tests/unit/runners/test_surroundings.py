"""What stands around a server is seen, and people are told which options take it away."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from sandbox_adapters.runners import probes
from sandbox_adapters.runners.hardening.cgroups import Cgroups
from sandbox_adapters.runners.surroundings import Surroundings

_COMPOSE = Path(__file__).parents[3] / "deploy" / "compose" / "compose.yaml"
_MOUNT = "31 30 0:5 / {point} rw - tmpfs tmpfs rw\n"
_PLAIN: Mapping[str, str] = {
    "proc/self/status": "Name:\tx\nSeccomp:\t0\nSeccomp_filters:\t0\n",
    "proc/self/attr/current": "unconfined\n",
    "proc/self/mountinfo": _MOUNT.format(point="/proc") + _MOUNT.format(point="/proc/sys/fs/binfmt_misc"),
}
_DOCKER = {
    ".dockerenv": "",
    "proc/self/status": "Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n",
    "proc/self/attr/current": "docker-default (enforce)\n",
    "proc/self/mountinfo": _MOUNT.format(point="/proc") + _MOUNT.format(point="/proc/kcore"),
}


def look(root: Path, files: Mapping[str, str], environment: Mapping[str, str] | None = None) -> Surroundings:
    for name, text in {**_PLAIN, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Surroundings.look(root=str(root), environment=environment or {}, directory=str(root))


def test_nothing_stands_around_a_plain_machine(tmp_path: Path) -> None:
    assert look(tmp_path, {}) == Surroundings()
    assert look(tmp_path / "empty", dict.fromkeys(_PLAIN, "")) == Surroundings()
    assert "bubblewrap 0.8" in Surroundings().advice()
    assert "user.max_user_namespaces" in Surroundings().advice()


def test_what_an_engine_put_around_it_is_seen(tmp_path: Path) -> None:
    assert look(tmp_path, _DOCKER) == Surroundings(
        in_container=True, filtered=True, profile="docker-default", masked=True
    )


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("proc/self/status", "seccomp=unconfined"),
        ("proc/self/attr/current", "apparmor=unconfined"),
        ("proc/self/mountinfo", "systempaths=unconfined"),
    ],
)
def test_each_hindrance_alone_is_told_with_its_option(tmp_path: Path, name: str, option: str) -> None:
    advice = look(tmp_path, {".dockerenv": "", name: _DOCKER[name]}).advice()
    assert [word for word in advice.split() if "=unconfined" in word] == [option]


def test_the_options_are_those_of_the_composition(tmp_path: Path) -> None:
    advice = look(tmp_path, _DOCKER).advice()
    options = yaml.safe_load(_COMPOSE.read_text())["services"]["replica1"]["security_opt"]
    needed = [option for option in options if option.endswith("=unconfined")]
    assert [word for word in advice.split() if "=unconfined" in word] == needed
    assert "compose.yaml" in advice


@pytest.mark.parametrize(
    ("files", "environment"),
    [({"run/.containerenv": ""}, {}), ({}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"})],
    ids=["podman", "kubernetes"],
)
def test_other_containers_are_known(tmp_path: Path, files: Mapping[str, str], environment: Mapping[str, str]) -> None:
    assert look(tmp_path, files, environment).in_container


def test_outside_a_container_both_ways_are_told(tmp_path: Path) -> None:
    advice = look(tmp_path, {"proc/self/status": _DOCKER["proc/self/status"]}).advice()
    assert "a system call filter" in advice
    assert "user.max_user_namespaces" in advice
    assert "Docker" not in advice


@pytest.mark.parametrize(("text", "together"), [("1\n", True), ("0\n", False)])
def test_a_cgroup_that_ends_as_a_whole_is_seen(tmp_path: Path, text: str, together: bool) -> None:
    assert look(tmp_path, {"memory.oom.group": text}).ends_together is together


@pytest.mark.anyio
@pytest.mark.parametrize("cgroup", [True, False])
@pytest.mark.parametrize("together", [True, False])
async def test_the_doctor_tells_it_where_executions_have_no_cgroup(
    monkeypatch: pytest.MonkeyPatch, *, together: bool, cgroup: bool
) -> None:
    monkeypatch.setattr(probes, "candidates", lambda _: [])
    monkeypatch.setattr(probes, "cgroup_check", lambda **_: probes.Check("cgroup", cgroup, ""))
    monkeypatch.setattr(Surroundings, "look", lambda: Surroundings(ends_together=together))
    told = [check for check in await probes.probe() if "memory.oom.group" in check.detail]
    assert bool(told) == (together and not cgroup)
    assert not any(check.ok for check in told)


def test_in_a_container_without_cgroups_the_advice_is_to_bound_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "open_cgroups", lambda _: Cgroups((), (), {"/sys/fs/cgroup": "Read-only file system"}))
    assert probes.cgroup_check(in_container=True).fix.startswith("Bound the memory and the processes of the container")
    assert probes.cgroup_check().fix.startswith("Start the server where")


def test_a_filter_is_told_beside_the_number_of_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_read", lambda _: "100")
    assert probes.namespace_check(filtered=True).detail.endswith("a system call filter may refuse them")
    assert probes.namespace_check().detail == "user.max_user_namespaces 100"
