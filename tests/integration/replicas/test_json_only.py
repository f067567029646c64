"""The guide's curl, which accepts JSON and no event stream, is answered by every replica."""

from __future__ import annotations

import httpx2
import pytest

from tests.integration.replicas.harness import Replica

pytestmark = pytest.mark.integration

_HELLO = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "curl", "version": "1"}}
_REQUESTS = {"initialize": _HELLO, "tools/call": {"name": "execute_code", "arguments": {"command": "true"}}}


def test_without_sessions_no_updates_are_offered(three: list[Replica]) -> None:
    headers = {"Accept": "application/json"}
    hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": _HELLO}
    said = httpx2.post(three[0].url, json=hello, headers=headers, timeout=20).json()["result"]["capabilities"]
    assert said["resources"] == {"subscribe": False, "listChanged": False}
    asked = {"jsonrpc": "2.0", "id": 2, "method": "resources/subscribe", "params": {"uri": "execution://x"}}
    refused = httpx2.post(three[0].url, json=asked, headers=headers, timeout=20).json()
    assert refused["error"]["code"] == -32601


@pytest.mark.parametrize("method", _REQUESTS)
def test_one_json_document_is_the_answer(three: list[Replica], method: str) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": _REQUESTS[method]}
    for replica in three[:2]:
        answer = httpx2.post(replica.url, json=body, headers={"Accept": "application/json"}, timeout=20)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["result"]
    streamed = httpx2.post(
        three[0].url, json=body, headers={"Accept": "application/json, text/event-stream"}, timeout=20
    )
    assert streamed.headers["content-type"] == "text/event-stream"
