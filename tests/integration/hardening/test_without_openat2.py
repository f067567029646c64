"""Where a filter takes openat2(2) away, as systemd's RestrictSUIDSGID= and DynamicUser= do."""

from __future__ import annotations

from sandbox_adapters.runners.capabilities import possible_grants
from sandbox_adapters.runners.child.mount_calls import can_open_paths
from sandbox_adapters.runners.granted import Granter
from sandbox_adapters.runners.hardening.set_id_filter import build_filter, restrict_self
from sandbox_core.domain.policy import ExecutionPolicy, FilesystemPolicy
from tests.integration.hardening.forked import in_child, no_new_privs

_OPERATOR = FilesystemPolicy(allow_read=("/srv",), allow_write=("/var/tmp/out",))  # only asked about
_GRANTER = Granter(("/usr", "/etc"), _OPERATOR)


def _said(policy: FilesystemPolicy) -> list[str]:
    return [str(violation) for violation in _GRANTER.violations(policy)]


def _grants() -> tuple[bool, bool]:
    return possible_grants(lambda policy: _GRANTER.violations(policy.filesystem))


def test_no_path_is_granted_and_the_reason_names_who_took_it() -> None:
    assert can_open_paths()
    assert _said(_OPERATOR) == []
    assert _grants() == (True, True)

    def under_the_filter() -> tuple[list[str], list[str], tuple[bool, bool]]:
        no_new_privs()
        restrict_self(build_filter())
        return _said(_OPERATOR), _said(ExecutionPolicy().filesystem), _grants()

    refused, private, grants = in_child(under_the_filter)
    assert [reason.partition(":")[0] for reason in refused] == ["filesystem.allow_read", "filesystem.allow_write"]
    assert all("RestrictSUIDSGID" in reason for reason in refused)
    assert private == []
    assert grants == [True, False]
