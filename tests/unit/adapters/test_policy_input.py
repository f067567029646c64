from __future__ import annotations

import difflib
import json
from typing import Any

import pytest

from sandbox_adapters.policy_input import parse_policy, policy_as_given, policy_json_schema
from sandbox_core.domain.errors import InvalidArgument
from sandbox_core.domain.policy import ExecutionPolicy, FilesystemPolicy, IsolationPolicy, NetworkPolicy, ResourceLimits


def test_an_empty_config_says_nothing() -> None:
    assert parse_policy({}) == ExecutionPolicy()


def test_both_spellings_mean_the_same() -> None:
    snake = parse_policy(
        {
            "network": {"allowed_domains": ["a.example"], "denied_domains": ["b.example"]},
            "filesystem": {"allow_read": ["w"], "deny_read": ["x"], "allow_write": ["y"], "deny_write": ["z"]},
            "resource_limits": {"max_memory_mb": 1, "max_cpu_seconds": 2, "max_file_size_mb": 3, "max_processes": 4},
            "isolation": {"require": ["seccomp"]},
        }
    )
    camel = parse_policy(
        {
            "network": {"allowedDomains": ["a.example"], "deniedDomains": ["b.example"]},
            "filesystem": {"allowRead": ["w"], "denyRead": ["x"], "allowWrite": ["y"], "denyWrite": ["z"]},
            "resourceLimits": {"maxMemoryMb": 1, "maxCpuSeconds": 2, "maxFileSizeMb": 3, "maxProcesses": 4},
            "isolation": {"require": ["seccomp"]},
        }
    )
    assert snake == camel
    assert snake == ExecutionPolicy(
        network=NetworkPolicy(("a.example",), ("b.example",)),
        filesystem=FilesystemPolicy(allow_read=("w",), deny_read=("x",), allow_write=("y",), deny_write=("z",)),
        resource_limits=ResourceLimits(max_memory_mb=1, max_cpu_seconds=2, max_file_size_mb=3, max_processes=4),
        isolation=IsolationPolicy(("seccomp",)),
    )


@pytest.mark.parametrize(
    "name", ["max_output_bytes", "max_open_files", "workspace_mb", "idle_timeout_seconds", "timeout_seconds"]
)
def test_limits_of_ours_stand_at_the_top_or_among_the_limits_but_not_twice(name: str) -> None:
    top = parse_policy({name: 7})
    assert getattr(top.resource_limits, name) == 7
    assert top == parse_policy({"resource_limits": {name: 7}})
    with pytest.raises(InvalidArgument, match=f"{name}: is also given as {name}"):
        parse_policy({name: 7, "resource_limits": {name: 8}})


def test_a_whole_number_may_be_written_with_a_point() -> None:
    assert parse_policy({"maxOutputBytes": 5.0, "timeoutSeconds": 2.5}) == parse_policy(
        {"max_output_bytes": 5, "timeout_seconds": 2.5}
    )


@pytest.mark.parametrize("item", [0, "a.example", [], None])
def test_a_list_that_is_too_long_is_refused_before_its_items_are_looked_at(item: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"network\.allowed_domains: has 5000 entries; at most 256 are taken"):
        parse_policy({"network": {"allowed_domains": [item] * 5000}})


def test_a_long_unknown_name_is_compared_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(difflib, "get_close_matches")
    with pytest.raises(InvalidArgument, match="is not a known field; known"):
        parse_policy({"timeoutSeconds" * 5: 1})


def test_null_is_the_same_as_leaving_it_out() -> None:
    given = {"network": None, "filesystem": {"deny_read": None}, "resource_limits": {"max_processes": None}}
    assert parse_policy(given) == ExecutionPolicy()


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"netwrk": {}}, "netwrk"),
        ({"network": {"allowed_domain": []}}, "network.allowed_domain"),
        ({"network": []}, "network"),
        ({"network": {"allowedDomains": "a.example"}}, "network.allowed_domains"),
        ({"network": {"allowed_domains": [""]}}, "network.allowed_domains"),
        ({"filesystem": {"deny_read": [5]}}, "filesystem.deny_read.0"),
        ({"filesystem": {"deny_read": ["a\0b"]}}, "filesystem.deny_read"),
        ({"filesystem": {"denyRead": ["/a", "\ud800"]}}, "filesystem.deny_read"),
        ({"isolation": {"require": "\udfff"}}, "isolation.require"),
        ({"resource_limits": {"max_memory_mb": "5"}}, "resource_limits.max_memory_mb"),
        ({"resource_limits": {"max_memory_mb": True}}, "resource_limits.max_memory_mb"),
        ({"resource_limits": {"max_memory_mb": 1.5}}, "resource_limits.max_memory_mb"),
        ({"resource_limits": {"max_memory_mb": -1}}, "resource_limits.max_memory_mb"),
        ({"resource_limits": {"max_memory_mb": 0}}, "resource_limits.max_memory_mb"),
        ({"resource_limits": {"max_memory_mb": 10**30}}, "resource_limits.max_memory_mb"),
        ({"resource_limits": {"max_memory_mb": 10**400}}, "resource_limits.max_memory_mb"),
        ({"resource_limits": {"max_memory_mb": 1e300}}, "resource_limits.max_memory_mb"),
        ({"timeout_seconds": float("nan")}, "resource_limits.timeout_seconds"),
        ({"timeout_seconds": float("inf")}, "resource_limits.timeout_seconds"),
        ({"resource_limits": {"maxProcesses": 1, "max_processes": 1}}, "resource_limits.max_processes"),
        ({"resource_limits": {"max_Processes": 1}}, "resource_limits.max_Processes"),
        ({"max_processes": 1}, "max_processes"),
        ({"filesystem": {"deny_read": {1, 2}}}, "sandbox_config"),
        ({5: {}}, "sandbox_config"),
        ([], "sandbox_config"),
    ],
)
def test_a_wrong_field_is_refused_with_its_path(given: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_policy(given)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"networks": {}}, "did you mean network?"),
        ({"resourceLimits": {"maxMemory": 5}}, "did you mean max_memory_mb?"),
        ({"timeoutSecond": 5}, "did you mean timeout_seconds?"),
        ({"maxProcesses": 5}, "did you mean resource_limits.max_processes?"),
    ],
)
def test_an_unknown_field_comes_with_the_nearest_known_one(given: dict[str, Any], hint: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_policy(given)
    assert hint in str(caught.value)


def test_an_endless_or_hostile_name_is_shown_short_and_escaped() -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_policy({"\x1b[31m" + "n" * 10_000: 1})
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_deeply_nested_value_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidArgument, match="plain JSON"):
        parse_policy({"filesystem": {"deny_read": deep}})


def test_the_schema_names_every_field_once_and_has_no_references() -> None:
    schema = policy_json_schema()
    assert set(schema["properties"]["resource_limits"]["properties"]) == set(ResourceLimits.__dataclass_fields__)
    assert set(schema["properties"]["network"]["properties"]) == {"allowed_domains", "denied_domains"}
    assert set(schema["properties"]["filesystem"]["properties"]) == set(FilesystemPolicy.__dataclass_fields__)
    assert "$ref" not in str(schema)


def test_each_caller_gets_a_schema_of_its_own() -> None:
    policy_json_schema()["properties"].clear()
    assert policy_json_schema()["properties"]


def test_a_policy_is_written_as_it_may_be_given() -> None:
    policy = ExecutionPolicy(
        network=NetworkPolicy(("a.example",)),
        filesystem=FilesystemPolicy(allow_read=("/opt",)),
        resource_limits=ResourceLimits(max_memory_mb=5, timeout_seconds=1.5),
        isolation=IsolationPolicy(("seccomp",)),
    )
    written = policy_as_given(policy)
    assert json.loads(json.dumps(written)) == written
    assert parse_policy(written) == policy
    assert written["resource_limits"] == {"max_memory_mb": 5, "timeout_seconds": 1.5}
