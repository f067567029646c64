"""What deploy/ holds is valid, says only what the server understands, and leaves it the time to drain."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it brings no types
import pytest
import yaml

from sandbox_adapters.settings import Settings, variable_name

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose"
VARIABLES = frozenset(variable_name(field) for field in Settings.model_fields)
KILL_GRACE_SECONDS = float(Settings.model_fields["kill_grace_seconds"].default)


def manifests() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{path.name}:{document['kind']}:{document['metadata']['name']}", document)
        for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
        if not document["apiVersion"].startswith("keda.sh/")  # test_scaling.py looks at those
    ]


def manifest(kind: str, name: str = "sandbox") -> dict[str, Any]:
    (found,) = [document for key, document in manifests() if key.endswith(f":{kind}:{name}")]
    return found


def container(workload: dict[str, Any]) -> dict[str, Any]:
    (only,) = workload["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def compose() -> dict[str, Any]:
    loaded = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


def replicas() -> Iterator[dict[str, Any]]:
    return (service for service in compose()["services"].values() if service["image"] == "sandbox-mcp")


@pytest.mark.parametrize(("name", "document"), manifests(), ids=[name for name, _ in manifests()])
def test_a_manifest_is_what_kubernetes_takes(name: str, document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_the_schema_finds_a_misspelt_field() -> None:
    document = manifest("Deployment")
    document["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("workload", [manifest("Deployment"), manifest("StatefulSet", "sandbox-redis")])
def test_a_pod_is_unprivileged(workload: dict[str, Any]) -> None:
    pod, only = workload["spec"]["template"]["spec"], container(workload)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["automountServiceAccountToken"] is False
    assert only["securityContext"]["allowPrivilegeEscalation"] is False
    assert only["securityContext"]["readOnlyRootFilesystem"] is True
    assert only["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_a_disruption_leaves_replicas_of_this_deployment() -> None:
    deployment, budget = manifest("Deployment"), manifest("PodDisruptionBudget")
    assert 1 <= budget["spec"]["minAvailable"] < deployment["spec"]["replicas"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert budget["spec"]["selector"]["matchLabels"] == labels
    assert manifest("Service")["spec"]["selector"] == labels


def test_a_redis_that_is_away_restarts_no_pod() -> None:
    only = container(manifest("Deployment"))
    assert only["readinessProbe"]["httpGet"]["path"] == "/health"
    assert "httpGet" not in only["livenessProbe"]


def test_every_variable_is_a_setting() -> None:
    set_in_pods = {entry["name"] for entry in container(manifest("Deployment"))["env"]}
    set_in_services = {name for service in replicas() for name in service["environment"]}
    set_in_image = set(re.findall(r"\b((?:SANDBOX|REDIS)_[A-Z_]+)=", (COMPOSE / "Dockerfile").read_text()))
    units = "".join(path.read_text() for path in (DEPLOY / "systemd").iterdir())
    set_in_units = set(re.findall(r"\b((?:SANDBOX|REDIS)_[A-Z_]+)=", units))
    for found in (set_in_pods, set_in_services, set_in_image, set_in_units):
        assert found
        assert found <= VARIABLES
    named = {name for path in DEPLOY.rglob("*") if path.is_file() for name in _variables_named_in(path.read_text())}
    assert named <= VARIABLES


def test_each_gives_the_server_time_to_drain() -> None:
    pod = manifest("Deployment")["spec"]["template"]["spec"]
    environment = {entry["name"]: entry.get("value") for entry in container(manifest("Deployment"))["env"]}
    pause = float(container(manifest("Deployment"))["lifecycle"]["preStop"]["exec"]["command"][1])
    drain = float(environment["SANDBOX_DRAIN_GRACE_SECONDS"])
    assert pod["terminationGracePeriodSeconds"] > pause + drain + 2 * KILL_GRACE_SECONDS
    for service in replicas():
        drain = float(service["environment"]["SANDBOX_DRAIN_GRACE_SECONDS"])
        assert float(service["stop_grace_period"].removesuffix("s")) > drain + 2 * KILL_GRACE_SECONDS


def test_the_composition_has_three_replicas_behind_its_nginx() -> None:
    services = compose()["services"]
    names = [name for name, service in services.items() if service["image"] == "sandbox-mcp"]
    assert len(names) == 3
    written = (COMPOSE / "nginx.conf").read_text()
    assert re.findall(r"server (\S+):8080 ", written) == names
    for service in replicas():
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert "ports" not in service
    assert "ports" not in services["redis"]


def test_nginx_of_the_composition_is_the_tested_one() -> None:
    tested = _without_comments((DEPLOY / "nginx" / "round-robin.conf").read_text())
    composed = _without_comments((COMPOSE / "nginx.conf").read_text())
    for number in range(3):
        tested = tested.replace(f"localhost:{8080 + number}", f"replica{number + 1}:8080")
    assert composed == tested


def test_the_image_is_made_of_files_that_exist_and_runs_unprivileged() -> None:
    text = (COMPOSE / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        *sources, _ = line.split()
        assert all((ROOT / source).exists() for source in sources)
    last_stage = text.rsplit("FROM ", 1)[1]
    assert re.search(r"^USER [1-9]\d*", last_stage, re.MULTILINE)
    assert 'ENTRYPOINT ["sandbox"]' in last_stage


def _variables_named_in(text: str) -> set[str]:
    return set(re.findall(r"\bSANDBOX_[A-Z]+(?:_[A-Z]+)*\b", text))


def _without_comments(text: str) -> str:
    lines = [line.split("#", 1)[0].rstrip() for line in text.splitlines()]
    return "\n".join(line for line in lines if line)
