"""Every attack of the table is blocked, and gets through as soon as what holds it is taken away.

One run per kind of server, in `conftest.server`; here is only what is to be expected of each. An attack that several
walls hold is also tried with any one of them gone, and is still blocked.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox_adapters.runners.bubblewrap import LAYERS
from sandbox_adapters.runners.controls import Control
from tests.integration.attacks.cases import CASES, Case
from tests.integration.attacks.conftest import Server
from tests.integration.attacks.inside import files, information, network, privilege, resources
from tests.integration.attacks.inside.verdicts import ATTACKS
from tests.integration.attacks.plan import COLD, all_on, batches, gone, off, ways, without_parts
from tests.integration.attacks.rig import BARE

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.attack)


def _layers(server: Server) -> frozenset[str]:
    return frozenset(server.answers["without nothing; cold"].layers)


def _skip_without_cgroup(server: Server) -> None:
    if "cgroup_tree" not in _layers(server):
        reason = "NO CGROUP HERE: limits of trees are not shown to hold"
        pytest.skip(reason if server.root else "does not apply: this user's server has no cgroup of its own")


def _yama() -> bool:
    try:
        return Path("/proc/sys/kernel/yama/ptrace_scope").read_text().strip() != "0"
    except FileNotFoundError:
        return False


def _no_new_privs() -> bool:
    return "\nNoNewPrivs:\t1" in Path("/proc/self/status").read_text()


def _skip_without_root(server: Server) -> None:
    if not server.roots:
        pytest.skip("does not apply: only root can prepare what it is after")


@each_case
def test_it_is_blocked(server: Server, case: Case) -> None:
    if case.cgroup:
        _skip_without_cgroup(server)
    for way in ways(case):
        through, evidence = server.verdict(all_on(case, way), case.attack)
        assert not through, (way, evidence)


@each_case
def test_it_gets_through_without_its_control(server: Server, case: Case) -> None:
    if case.cgroup:
        _skip_without_cgroup(server)
    if case.roots:
        _skip_without_root(server)
    if not server.root and case.off_as_user is None:
        pytest.skip(f"does not apply: {case.why_not}")
    if case.machine and not server.verdict(off(case, [BARE]), case.attack)[0]:
        pytest.skip("does not apply: this machine has nothing of the kind, without any sandbox either")
    if case.bare and _no_new_privs():
        pytest.skip("does not apply: here nothing has a way to new privileges, without any sandbox either")
    if case.tracing and _yama():
        pytest.skip("does not apply: this kernel lets nobody but descendants be traced")
    sets = gone(case, root=server.root)
    assert sets
    for without in sets:
        through, evidence = server.verdict(off(case, without), case.attack)
        assert through, (sorted(without), evidence)


@pytest.mark.parametrize(
    "case", [case for case in CASES if without_parts(case, root=True)], ids=lambda case: case.attack
)
def test_any_one_of_several_controls_is_enough(server: Server, case: Case) -> None:
    for without in without_parts(case, root=server.root):
        others = frozenset().union(*case.sets(root=server.root)) - without
        if others <= {Control.CGROUP_TREE, Control.LANDLOCK_SCOPES} - _layers(server):
            continue
        through, evidence = server.verdict(off(case, without), case.attack)
        assert not through, (sorted(without), evidence)


def test_the_record_never_has_what_is_taken_away(server: Server) -> None:
    everything = _layers(server)
    assert everything >= set(LAYERS)
    for batch in batches(root=server.root):
        if BARE not in batch.without:
            answer = server.answers[batch.name]
            expected = everything - set(batch.without)
            # A grant adds walls of its own.
            added = set(answer.layers) - everything if batch.grants else set()
            assert set(answer.layers) - added == expected, batch.name
            assert ("seccomp_sha256" in answer.facts) == ("seccomp" not in batch.without)
            assert (answer.kernel_uid == 0) == (Control.UNIQUE_UID in batch.without)


def test_every_attack_is_in_the_table() -> None:
    assert {module.__name__.rpartition(".")[2] for module in (files, information, network, privilege, resources)} == {
        case.subject for case in CASES
    }
    assert {case.attack for case in CASES} == set(ATTACKS)


def test_every_control_is_taken_away_for_some_attack() -> None:
    taken = {control for case in CASES for controls in case.sets(root=True) for control in controls}
    # test_life.py takes the first two away, runners/test_grants_bite.py those of granted directories.
    elsewhere = {
        Control.PARENT_DEATH_SIGNAL, Control.MARKED_PROCESSES, Control.NO_SET_ID_BITS, Control.NO_LINKS_IN_GRANTS,
    }  # fmt: skip
    assert taken == set(Control) - elsewhere


def test_sandboxes_built_ahead_are_attacked_too() -> None:
    assert {way for case in CASES for way in ways(case)} > {COLD}
