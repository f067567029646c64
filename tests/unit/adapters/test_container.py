from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, get_args

import pytest
from dependency_injector import providers

from sandbox_adapters.container import SandboxContainer
from sandbox_adapters.nats_connection import NatsConnection
from sandbox_adapters.queues.adopting import AdoptingQueue
from sandbox_adapters.rabbitmq_connection import RabbitConnection
from sandbox_adapters.settings import Settings
from sandbox_core.application.remote import RemoteBack
from sandbox_core.application.service import ExecutionService
from sandbox_core.application.supervisor import ExecutionSupervisor
from sandbox_core.testing.scripted_runner import ScriptedRunner

SELECTORS = {"state": ("connection", "store", "control"), "runner": ("own_runner",)}
CHOICES = {name: get_args(Settings.model_fields[name].annotation) for name in SELECTORS}
ALSO_NEEDED = {"redis": {"redis_url": "redis://localhost:1"}, "memory": {}}
CONFIGURATIONS = [dict(zip(CHOICES, values, strict=True)) for values in itertools.product(*CHOICES.values())]


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda chosen: "-".join(chosen.values()))
def test_every_provider_resolves_under_every_configuration(configuration: dict[str, Any]) -> None:
    container = SandboxContainer(settings=Settings.model_validate(configuration | ALSO_NEEDED[configuration["state"]]))
    runner = container.runner()
    assert runner.name == configuration["runner"]
    # What the runner can hold is known once it is entered, which needs a real machine: a scripted one answers here.
    container.runner.override(ScriptedRunner())
    # State in memory has no log of messages: older clients' streams live in the server itself.
    absent = {"messages", "metrics"} if configuration["state"] == "memory" else {"metrics"}
    assert {name for name, provider in container.providers.items() if provider() is None} == absent
    assert isinstance(container.service(), ExecutionService)
    assert isinstance(container.supervisor(), ExecutionSupervisor)


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda chosen: "-".join(chosen.values()))
def test_every_object_is_made_once(configuration: dict[str, Any]) -> None:
    container = SandboxContainer(settings=Settings.model_validate(configuration | ALSO_NEEDED[configuration["state"]]))
    for name in ("store", "queue", "control", "runner", "clock", "node"):
        provider = container.providers[name]
        assert provider() is provider(), name


def test_two_containers_share_nothing() -> None:
    first, second = SandboxContainer(settings=Settings()), SandboxContainer(settings=Settings())
    assert first.store() is not second.store()
    assert first.node() != second.node()


@pytest.mark.parametrize("setting", SELECTORS)
def test_every_choice_of_a_setting_has_an_adapter_and_no_adapter_is_out_of_reach(setting: str) -> None:
    container = SandboxContainer(settings=Settings())
    for name in SELECTORS[setting]:
        selector = container.providers[name]
        assert isinstance(selector, providers.Selector)
        assert set(selector.providers) == set(CHOICES[setting]), name


WORKERS = {"redis_url": "redis://localhost:1", "queue_url": "redis://localhost:1"}


def test_a_server_with_a_shared_queue_runs_what_it_takes_unless_it_is_told_not_to() -> None:
    mixed = SandboxContainer(settings=Settings.model_validate(WORKERS))
    front = SandboxContainer(settings=Settings.model_validate(WORKERS | {"local_runner": False}))
    mixed.runner.override(ScriptedRunner())
    assert isinstance(mixed.queue(), AdoptingQueue)
    assert isinstance(mixed.supervisor(), ExecutionSupervisor)
    assert isinstance(front.supervisor(), RemoteBack)
    assert (front.runner().name, front.capabilities().isolated) == ("remote", False)
    assert front.service() is not None


def test_a_queue_on_the_server_of_the_state_uses_its_connection_and_another_one_has_its_own() -> None:
    same = SandboxContainer(settings=Settings.model_validate(WORKERS))
    other = SandboxContainer(settings=Settings.model_validate(WORKERS | {"queue_url": "redis://localhost:2"}))
    assert same.queue_connection() is same.connection()
    assert other.queue_connection() is not other.connection()
    assert other.queue_connection().address == "localhost:2, database 0"


def test_a_queue_in_nats_has_a_way_of_its_own() -> None:
    given = WORKERS | {"queue_url": "nats://u:p@localhost:3", "redis_prefix": "a.b", "redis_timeout_seconds": 4}
    container = SandboxContainer(settings=Settings.model_validate(given))
    assert isinstance(container.queue(), AdoptingQueue)
    connection = container.queue_connection()
    assert isinstance(connection, NatsConnection)
    assert connection.address == "localhost:3"
    assert connection.options.base == "sandbox-a~db"
    assert connection.options.timeout_seconds == 4


def test_a_queue_in_rabbitmq_has_a_way_of_its_own_and_its_index_in_the_redis_of_the_state() -> None:
    given = WORKERS | {"queue_url": "amqps://u:p@localhost/v", "redis_prefix": "a", "redis_timeout_seconds": 4}
    container = SandboxContainer(settings=Settings.model_validate(given))
    assert isinstance(container.queue(), AdoptingQueue)
    connection = container.queue_connection()
    assert isinstance(connection, RabbitConnection)
    assert connection.address == "localhost:5671, virtual host v"
    assert connection.options.base == "sandbox.a"
    assert connection.options.timeout_seconds == 4


def test_the_only_principal_of_a_fleet_may_use_all_of_it() -> None:
    one = SandboxContainer(settings=Settings.model_validate(WORKERS))
    assert one.shares().quota.per_principal > 1000
    assert one.shares().quota.per_node == 10


def test_settings_reach_the_adapters(tmp_path: Path) -> None:
    container = SandboxContainer(
        settings=Settings(max_concurrent=3, max_per_session=2, max_queued=7, kill_grace_seconds=1, bwrap_path=tmp_path)
    )
    container.runner.override(ScriptedRunner())
    assert container.supervisor().capacity == 3
    assert container.shares().quota.per_session == 2
    assert container.shares().queued_per_principal == 7


def test_only_settings_are_taken_as_settings() -> None:
    container = SandboxContainer(settings={"state": "memory"})
    with pytest.raises(Exception, match="Settings"):
        container.store()


@pytest.mark.parametrize("url", ["redis://localhost:2", "nats://localhost:2", "amqp://localhost:2"])
def test_a_queue_on_another_server_counts_what_it_is_asked(url: str) -> None:
    given = {"redis_url": "redis://localhost:1", "queue_url": url, "metrics": "open"}
    container = SandboxContainer(settings=Settings.model_validate(given))
    metrics = container.metrics()
    assert metrics is not None
    assert metrics.connections == {"state", "queue"}
