"""What scales workers in deploy/ names deployments, ports and metrics that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox_adapters.sandbox import open_sandbox
from sandbox_adapters.settings import Settings, variable_name
from sandbox_core.testing.scripted_runner import ScriptedRunner
from tests.scrapes import read_scrape

ROOT = Path(__file__).parents[3]
KUBERNETES = ROOT / "deploy" / "kubernetes"
PROMETHEUS = ROOT / "deploy" / "prometheus" / "prometheus.yaml"
TARGETED = ("workers.yaml", "workers-hpa.yaml", "workers-keda.yaml")
KILL_GRACE_SECONDS = float(Settings.model_fields["kill_grace_seconds"].default)
VARIABLES = frozenset(variable_name(field) for field in Settings.model_fields)

_FUNCTIONS = {"max", "sum"}


def documents(name: str) -> list[dict[str, Any]]:
    return [dict(document) for document in yaml.safe_load_all((KUBERNETES / name).read_text())]


def deployment(name: str) -> dict[str, Any]:
    (found,) = [
        document
        for document in documents("workers.yaml")
        if (document["kind"], document["metadata"]["name"]) == ("Deployment", name)
    ]
    return found


def container(name: str) -> dict[str, Any]:
    (only,) = deployment(name)["spec"]["template"]["spec"]["containers"]
    return dict(only)


def values(name: str) -> dict[str, str | None]:
    return {entry["name"]: entry.get("value") for entry in container(name)["env"]}


def scaled_object() -> dict[str, Any]:
    (only,) = documents("workers-keda.yaml")
    return only


def queries() -> list[str]:
    found = [trigger["metadata"]["query"] for trigger in scaled_object()["spec"]["triggers"]]
    return [*found, *re.findall(r"metricsQuery: '([^']+)'", (KUBERNETES / "workers-hpa.yaml").read_text())]


@pytest.mark.anyio
async def test_every_metric_that_a_query_names_is_told() -> None:
    async with open_sandbox(Settings(metrics="open", log_file=""), runner=ScriptedRunner()) as sandbox:
        assert sandbox.metrics is not None
        told = read_scrape((await sandbox.metrics.render())[0].decode()).names()
    for query in queries():
        named = set(re.findall(r"[a-z_]+", query)) - _FUNCTIONS
        assert named
        assert named <= told, query
    documented = set(re.findall(r"`(sandbox_[a-z_]+)[`{]", (ROOT / "docs" / "scaling.md").read_text()))
    of_connections = {"sandbox_backend_round_trips_total", "sandbox_backend_errors_total"}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in told} == documented - of_connections


@pytest.mark.parametrize("name", TARGETED)
def test_what_is_scaled_exists(name: str) -> None:
    targets = [
        document["spec"]["scaleTargetRef"] for document in documents(name) if "scaleTargetRef" in document["spec"]
    ]
    assert targets
    for target in targets:
        assert (target["apiVersion"], target["kind"]) == ("apps/v1", "Deployment")
        assert "replicas" not in deployment(target["name"])["spec"]


def test_a_replica_is_asked_for_each_share_of_slots() -> None:
    arguments = container("sandbox-worker")["args"]
    slots = arguments[arguments.index("--concurrency") + 1]
    demand, _ = scaled_object()["spec"]["triggers"]
    assert demand["metadata"]["threshold"] == slots
    (hpa,) = documents("workers-hpa.yaml")
    assert hpa["spec"]["metrics"][0]["external"]["target"]["averageValue"] == slots
    assert demand["metadata"]["query"] == queries()[-1]


def test_the_adapter_s_rule_gives_the_metric_that_the_autoscaler_asks_for() -> None:
    comment = [line for line in (KUBERNETES / "workers-hpa.yaml").read_text().splitlines() if line.startswith("#     ")]
    (rule,) = yaml.safe_load("\n".join(line[6:] for line in comment))["rules"]["external"]
    (hpa,) = documents("workers-hpa.yaml")
    assert rule["name"]["as"] == hpa["spec"]["metrics"][0]["external"]["metric"]["name"]
    # deploy/prometheus sets no label for the namespace.
    labels = {
        rule.get("target_label")
        for rule in yaml.safe_load(PROMETHEUS.read_text())["scrape_configs"][0]["relabel_configs"]
    }
    assert rule["resources"] == {"namespaced": "namespace" in labels}
    assert rule["metricsQuery"] == queries()[-1]


def test_the_object_of_keda_has_the_fields_that_its_definition_has() -> None:
    spec = scaled_object()["spec"]
    assert scaled_object()["apiVersion"] == "keda.sh/v1alpha1"
    assert spec.keys() <= {
        "scaleTargetRef", "pollingInterval", "cooldownPeriod", "initialCooldownPeriod", "idleReplicaCount",
        "minReplicaCount", "maxReplicaCount", "fallback", "advanced", "triggers",
    }  # fmt: skip
    assert spec["fallback"].keys() == {"failureThreshold", "replicas"}
    for trigger in spec["triggers"]:
        assert trigger["type"] == "prometheus"
        assert trigger["metricType"] in {"AverageValue", "Value"}
        known = {"serverAddress", "query", "threshold", "activationThreshold", "ignoreNullValues", "namespace"}
        assert trigger["metadata"].keys() <= known
        assert all(isinstance(value, str) for value in trigger["metadata"].values())


@pytest.mark.parametrize("name", ["sandbox-api", "sandbox-worker"])
def test_variables_are_settings_and_there_is_time_to_drain(name: str) -> None:
    assert values(name).keys() <= VARIABLES
    pod = deployment(name)["spec"]["template"]["spec"]
    grace = float(values(name).get("SANDBOX_DRAIN_GRACE_SECONDS") or 0)
    assert pod["terminationGracePeriodSeconds"] > grace + 2 * KILL_GRACE_SECONDS
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert container(name)["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_a_worker_may_finish_what_it_runs_before_it_is_ended() -> None:
    assert (
        float(values("sandbox-worker")["SANDBOX_DRAIN_GRACE_SECONDS"] or 0) >= Settings.model_fields["timeout"].default
    )


def test_a_server_that_runs_nothing_has_no_right_that_isolation_needs() -> None:
    assert "--no-local-runner" in container("sandbox-api")["args"]
    pod = deployment("sandbox-api")["spec"]["template"]["spec"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert "procMount" not in container("sandbox-api")["securityContext"]


def test_prometheus_scrapes_the_ports_that_tell_metrics() -> None:
    (job,) = yaml.safe_load(PROMETHEUS.read_text())["scrape_configs"]
    names, ports = [rule["regex"].split("|") for rule in job["relabel_configs"] if rule.get("action") == "keep"]
    assert set(names) == {"sandbox-api", "sandbox-worker"}
    for name, variable in (("sandbox-api", "SANDBOX_PORT"), ("sandbox-worker", "SANDBOX_WORKER_PORT")):
        (port,) = container(name)["ports"]
        assert port["name"] in ports
        assert str(port["containerPort"]) == values(name)[variable]
        assert values(name)["SANDBOX_METRICS"] == "token"
        assert "SANDBOX_METRICS_TOKEN" in values(name)
