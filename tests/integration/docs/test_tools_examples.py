"""What docs/tools.md shows of a refusal is what comes back."""

from __future__ import annotations

import json
from dataclasses import asdict

import anyio
import pytest

from sandbox_adapters import Settings, open_sandbox
from tests.integration.docs.markdown import blocks

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


async def test_a_name_that_is_not_granted_comes_back_as_shown() -> None:
    [shown] = [json.loads(item.text) for item in blocks("docs/tools.md") if item.language == "json"]
    network = {"network": {"allowed_domains": ["granted.invalid"]}}
    asking = (
        "import urllib.request as web\nfor _ in 'ab':\n try: web.urlopen('https://example.com')\n except OSError: pass"
    )
    with anyio.fail_after(60):
        async with open_sandbox(Settings(ceiling=network)) as sandbox:
            result = await sandbox.run(["python3", "-c", asking], policy=network)
    assert {"denials": [asdict(denial) for denial in result.denials]} == shown
