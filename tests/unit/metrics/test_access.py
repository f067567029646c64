"""Who may read `/metrics`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from sandbox_adapters.container import SandboxContainer
from sandbox_adapters.settings import Settings, SettingsError
from sandbox_core.testing.scripted_runner import ScriptedRunner
from sandbox_mcp.metrics import check_metrics


def test_it_is_off_unless_asked_for() -> None:
    assert Settings().metrics == "off"
    check_metrics(Settings())


@pytest.mark.parametrize("token", [None, ""])
def test_a_token_that_is_not_set_opens_nothing(token: str | None) -> None:
    with pytest.raises(SettingsError, match="SANDBOX_METRICS_TOKEN is not set"):
        check_metrics(Settings.model_validate({"metrics": "token", "metrics_token": token}))


def test_a_token_that_no_header_carries_is_refused() -> None:
    with pytest.raises(SettingsError, match="SANDBOX_METRICS_TOKEN: must be"):
        check_metrics(Settings.model_validate({"metrics": "token", "metrics_token": "two words"}))


@pytest.mark.parametrize("metrics", ["off", "token", "open"])
def test_a_caller_s_token_is_no_scraper_s(metrics: str, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps({"alice": "runs-code"}))
    fields = {"metrics": metrics, "metrics_token": "runs-code", "auth_tokens_file": tokens}
    with pytest.raises(SettingsError, match="also a caller's") as caught:
        check_metrics(Settings.model_validate(fields))
    assert "runs-code" not in str(caught.value)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sandbox_adapters.metrics.exposition", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    container = SandboxContainer(settings=Settings(metrics="open"))
    container.runner.override(ScriptedRunner())
    with pytest.raises(SettingsError, match="sandbox-mcp\\[metrics\\]"):
        container.metrics()
