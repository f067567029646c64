"""Policy: a request narrows or is refused, field by field."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_core.domain.errors import InvalidArgument, PolicyRefused
from sandbox_core.domain.policy import (
    ExecutionPolicy,
    FilesystemPolicy,
    IsolationPolicy,
    NetworkPolicy,
    ResourceLimits,
    domain_covers,
    path_granted,
    resolve,
)

WHOLE = st.none() | st.integers(1, 1 << 40)
SECONDS = st.none() | st.floats(0.001, 1e9)
LIMITS = st.builds(
    ResourceLimits,
    **{item.name: SECONDS if item.name.endswith("timeout_seconds") else WHOLE for item in fields(ResourceLimits)},
)
POLICIES = st.builds(ExecutionPolicy, resource_limits=LIMITS)
EVERYTHING = ExecutionPolicy(filesystem=FilesystemPolicy(allow_write=(".", "/tmp")))


@given(request=POLICIES, ceiling=POLICIES, defaults=POLICIES)
def test_resolved_limits_are_within_the_ceiling_and_nothing_asked_is_changed(
    request: ExecutionPolicy, ceiling: ExecutionPolicy, defaults: ExecutionPolicy
) -> None:
    asked, bounds = request.resource_limits, ceiling.resource_limits
    wider = {
        f"resource_limits.{item.name}"
        for item in fields(ResourceLimits)
        if None not in (getattr(asked, item.name), getattr(bounds, item.name))
        and getattr(asked, item.name) > getattr(bounds, item.name)
    }
    if wider:
        with pytest.raises(PolicyRefused) as refused:
            resolve(request, ceiling=ceiling, defaults=defaults)
        assert {violation.field for violation in refused.value.violations} == wider
        return
    resolved = resolve(request, ceiling=ceiling, defaults=defaults).resource_limits
    for item in fields(ResourceLimits):
        value, bound = getattr(resolved, item.name), getattr(bounds, item.name)
        if getattr(asked, item.name) is not None:
            assert value == getattr(asked, item.name)
        if bound is not None:
            assert value is not None
            assert value <= bound


@given(request=POLICIES, ceiling=POLICIES, defaults=POLICIES)
def test_resolving_a_resolved_policy_changes_nothing(
    request: ExecutionPolicy, ceiling: ExecutionPolicy, defaults: ExecutionPolicy
) -> None:
    try:
        once = resolve(request, ceiling=ceiling, defaults=defaults)
    except PolicyRefused:
        return
    assert resolve(once, ceiling=ceiling, defaults=defaults) == once


def test_refusal_names_every_field_with_what_was_asked_and_the_limit() -> None:
    ceiling = ExecutionPolicy(resource_limits=ResourceLimits(max_memory_mb=512, timeout_seconds=300))
    request = ExecutionPolicy(
        network=NetworkPolicy(allowed_domains=("example.com",)),
        resource_limits=ResourceLimits(max_memory_mb=1024, timeout_seconds=301.0),
    )
    with pytest.raises(PolicyRefused) as refused:
        resolve(request, ceiling=ceiling, defaults=ExecutionPolicy())
    text = str(refused.value)
    for part in ("max_memory_mb", "1024", "512", "timeout_seconds", "301", "300", "example.com", "no domain"):
        assert part in text


def test_denials_of_the_operator_stay() -> None:
    ceiling = ExecutionPolicy(
        network=NetworkPolicy(denied_domains=("bad.example",)), filesystem=FilesystemPolicy(deny_read=("/opt/secret",))
    )
    resolved = resolve(ExecutionPolicy(), ceiling=ceiling, defaults=ExecutionPolicy())
    assert resolved.network.denied_domains == ("bad.example",)
    assert resolved.filesystem.deny_read == ("/opt/secret",)


@pytest.mark.parametrize("path", [".", "out", "./a/b", "/workspace/x", "/tmp", "/tmp/x/../y"])
def test_writing_inside_the_granted_directories_is_accepted(path: str) -> None:
    request = ExecutionPolicy(filesystem=FilesystemPolicy(allow_write=(path,)))
    assert resolve(request, ceiling=EVERYTHING, defaults=EVERYTHING).filesystem.allow_write == (path,)


@pytest.mark.parametrize("path", ["..", "/", "/tmpx", "/workspace/../etc", "/tmp/../etc", "../workspacex"])
def test_writing_outside_the_granted_directories_is_refused(path: str) -> None:
    request = ExecutionPolicy(filesystem=FilesystemPolicy(allow_write=(path,)))
    with pytest.raises(PolicyRefused, match=r"filesystem\.allow_write"):
        resolve(request, ceiling=EVERYTHING, defaults=EVERYTHING)


@pytest.mark.parametrize("path", ["~", "~/project", "~/../etc", "~root/x"])
def test_the_workspace_being_granted_grants_no_home_directory(path: str) -> None:
    for request in (FilesystemPolicy(allow_write=(path,)), FilesystemPolicy(allow_read=(path,))):
        with pytest.raises(PolicyRefused, match=r"filesystem\.allow_"):
            resolve(ExecutionPolicy(filesystem=request), ceiling=EVERYTHING, defaults=EVERYTHING)


@pytest.mark.parametrize(
    ("path", "granted"),
    [("~/project", True), ("~/project/a", True), ("~/project/../x", False), ("~/projects", False), ("~", False)],
)
def test_a_home_directory_is_granted_by_what_names_it(path: str, granted: bool) -> None:
    assert path_granted(path, "~/project") is granted


def test_reading_is_granted_by_what_may_be_read_or_written() -> None:
    ceiling = ExecutionPolicy(filesystem=FilesystemPolicy(allow_read=("/opt",), allow_write=("/srv/out",)))
    asked = ("/opt/tool", "/srv/out/a")
    request = ExecutionPolicy(filesystem=FilesystemPolicy(allow_read=asked))
    assert resolve(request, ceiling=ceiling, defaults=ExecutionPolicy()).filesystem.allow_read == asked
    assert resolve(ExecutionPolicy(), ceiling=ceiling, defaults=ceiling).filesystem.allow_read == ()
    for wider in (FilesystemPolicy(allow_read=("/srv",)), FilesystemPolicy(allow_write=("/opt/tool",))):
        with pytest.raises(PolicyRefused):
            resolve(ExecutionPolicy(filesystem=wider), ceiling=ceiling, defaults=ceiling)


@pytest.mark.parametrize(
    ("ceiling", "granted", "refused"),
    [
        (
            FilesystemPolicy(allow_read=("/srv",), deny_read=("/srv/secret",)),
            FilesystemPolicy(allow_read=("/srv", "/srv/secrets", "/srv/a")),
            FilesystemPolicy(allow_read=("/srv/secret", "/srv/secret/keys", "/srv/a/../secret/keys")),
        ),
        (
            FilesystemPolicy(allow_read=("/srv", "/srv/secret/open"), deny_read=("/srv/secret",)),
            FilesystemPolicy(allow_read=("/srv/secret/open", "/srv/secret/open/a")),
            FilesystemPolicy(allow_read=("/srv/secret/other",)),
        ),
        (
            FilesystemPolicy(allow_write=("/srv",), deny_write=("/srv/fixed",), deny_read=("//srv/secret",)),
            FilesystemPolicy(allow_write=("/srv/a",), allow_read=("/srv/fixed/a",)),
            FilesystemPolicy(allow_write=("/srv/fixed/a", "/srv/secret/a")),
        ),
        (
            FilesystemPolicy(allow_read=("/srv",), deny_read=("/srv",)),
            FilesystemPolicy(),
            FilesystemPolicy(allow_read=("/srv", "/srv/a")),
        ),
        (
            FilesystemPolicy(allow_write=("/",), deny_read=("/etc",)),
            FilesystemPolicy(allow_read=("/", "/opt")),
            FilesystemPolicy(allow_read=("/etc/passwd",)),
        ),
    ],
)
def test_what_the_operator_denies_cannot_be_granted_again_by_naming_something_inside(
    ceiling: FilesystemPolicy, granted: FilesystemPolicy, refused: FilesystemPolicy
) -> None:
    bounds = ExecutionPolicy(filesystem=ceiling)
    resolved = resolve(ExecutionPolicy(filesystem=granted), ceiling=bounds, defaults=bounds)
    assert (resolved.filesystem.allow_read, resolved.filesystem.allow_write) == (
        granted.allow_read,
        granted.allow_write,
    )
    with pytest.raises(PolicyRefused) as caught:
        resolve(ExecutionPolicy(filesystem=refused), ceiling=bounds, defaults=bounds)
    assert {violation.asked for violation in caught.value.violations} == {*refused.allow_read, *refused.allow_write}


def test_required_layers_add_up() -> None:
    requests = [ExecutionPolicy(isolation=IsolationPolicy(require=names)) for names in (("a", "b"), ("b", "c"), ("d",))]
    resolved = resolve(requests[2], ceiling=requests[0], defaults=requests[1])
    assert resolved.isolation.require == ("a", "b", "c", "d")
    assert resolve(resolved, ceiling=requests[0], defaults=requests[1]) == resolved


@pytest.mark.parametrize(
    ("pattern", "name", "covered"),
    [
        ("example.com", "example.com", True),
        ("Example.COM.", "example.com", True),
        ("example.com", "www.example.com", False),
        ("*.example.com", "www.example.com", True),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "notexample.com", False),
        ("*.example.com", "*.example.com", True),
        ("*.example.com", "*.www.example.com", True),
        ("www.example.com", "*.example.com", False),
    ],
)
def test_a_wildcard_covers_names_below_it_and_not_its_apex(pattern: str, name: str, covered: bool) -> None:
    assert domain_covers(pattern, name) is covered


@pytest.mark.parametrize("value", [0, -1, 1 << 41, 10**400, True, "5", 1.5, float("nan"), float("inf")])
def test_a_limit_that_is_no_sensible_number_is_refused_by_name(value: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"resource_limits\.max_memory_mb"):
        ResourceLimits(max_memory_mb=value)


@pytest.mark.parametrize("value", [0, -0.5, float("nan"), float("inf"), 1e300, 10**400])
def test_a_timeout_that_is_no_sensible_number_is_refused_by_name(value: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"resource_limits\.timeout_seconds"):
        ResourceLimits(timeout_seconds=value)


@pytest.mark.parametrize("entry", ["", "a\0b", "x" * 5000])
def test_a_list_entry_that_cannot_be_a_path_is_refused(entry: str) -> None:
    with pytest.raises(InvalidArgument, match=r"filesystem\.deny_read"):
        FilesystemPolicy(deny_read=(entry,))


def test_what_the_ceiling_denies_inside_its_grants_needs_a_grant_inside_that() -> None:
    ceiling = ExecutionPolicy(
        filesystem=FilesystemPolicy(
            allow_write=("/srv", "/srv/secret/out"), deny_read=("/srv/secret",), deny_write=("/srv/fixed",)
        )
    )
    for path in ("/srv/a", "/srv/secret/out/x", "/srv//secret/../a", "//srv/a"):
        request = ExecutionPolicy(filesystem=FilesystemPolicy(allow_write=(path,)))
        assert resolve(request, ceiling=ceiling, defaults=ceiling).filesystem.allow_write == (path,)
    refused = (
        FilesystemPolicy(allow_read=("/srv/secret",)),
        FilesystemPolicy(allow_read=("/srv/secret/x",)),
        FilesystemPolicy(allow_write=("/srv/fixed/x",)),
        FilesystemPolicy(allow_write=("//srv/secret/x",)),
    )
    for asked in refused:
        with pytest.raises(PolicyRefused, match=r"filesystem\.allow_"):
            resolve(ExecutionPolicy(filesystem=asked), ceiling=ceiling, defaults=ceiling)
    readable = ExecutionPolicy(filesystem=FilesystemPolicy(allow_read=("/srv/fixed/x",)))
    assert resolve(readable, ceiling=ceiling, defaults=ceiling).filesystem.allow_read == ("/srv/fixed/x",)
