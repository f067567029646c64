"""What docs/network.md shows can be used as it stands."""

from __future__ import annotations

import json
import shlex

import pytest

from sandbox_adapters.container import egress_of
from sandbox_adapters.policy_input import parse_policy
from sandbox_adapters.settings import PREFIX, Settings
from sandbox_core.domain.policy import ExecutionPolicy, resolve
from tests.integration.docs.markdown import blocks


def examples(language: str) -> list[str]:
    return [item.text for item in blocks("docs/network.md") if item.language == language]


def test_the_request_fits_the_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    [request] = [parse_policy(json.loads(text)) for text in examples("json")]
    ceiling, _ = [variables(text) for text in examples("sh")]
    monkeypatch.setenv("SANDBOX_CEILING", ceiling["SANDBOX_CEILING"])
    resolve(request, ceiling=parse_policy(Settings().ceiling), defaults=ExecutionPolicy())
    assert egress_of(Settings()).violations(request.network) == []


def test_the_mirror_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables(examples("sh")[1]).items():
        monkeypatch.setenv(name, value)
    egress = egress_of(Settings())
    [address] = egress._hosts["mirror.internal"]
    assert egress._addresses.refusal(address) is None


def variables(text: str) -> dict[str, str]:
    found = dict(word.split("=", 1) for word in shlex.split(text))
    assert all(name.startswith(PREFIX) for name in found)
    return found
