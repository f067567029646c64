from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox_adapters.logging import configure_logging, get_logger
from sandbox_adapters.settings import SettingsError

TOKEN = "tok-0123456789"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def quiet_afterwards() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    for handler in handlers:
        root.removeHandler(handler)
    yield
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(capture=False)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_off_a_terminal_each_record_is_a_line_of_json_with_its_fields() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream)
    get_logger("sandbox.test").info("ExecutionManager initialised", runner="bubblewrap", capacity=10)
    (line,) = lines(stream)
    assert line["event"] == "ExecutionManager initialised"
    assert (line["runner"], line["capacity"], line["level"], line["logger"]) == (
        "bubblewrap",
        10,
        "info",
        "sandbox.test",
    )
    assert line["timestamp"].endswith("Z")


def test_on_a_terminal_people_read_a_sentence() -> None:
    stream = Terminal()
    configure_logging(stream=stream)
    get_logger("sandbox.test").info("Started", port=8080)
    assert "Started" in stream.getvalue()
    with pytest.raises(ValueError, match=r"Expecting|Extra"):
        json.loads(stream.getvalue())


def test_records_of_the_standard_library_take_the_same_way() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream)
    logging.getLogger("sandbox_core.run").warning("lease of %s lost", "x")
    logging.getLogger("uvicorn.error").error("bind failed")
    assert [line["event"] for line in lines(stream)] == ["lease of x lost", "bind failed"]


def test_chatter_of_libraries_and_the_access_log_are_left_out() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream)
    logging.getLogger("mcp.server").info("processing")
    logging.getLogger("uvicorn.access").info("GET /?token=x")
    logging.getLogger("aiormq.connection").error("refused, as our own line says")
    get_logger("sandbox").debug("detail")
    assert stream.getvalue() == ""


def test_debugging_is_ours_alone() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream, level="DEBUG")
    for name in ("sse_starlette.sse", "mcp.server", "asyncio", "sandbox_mcp.server", "sandbox_core.run"):
        logging.getLogger(name).debug("chunk: output")
    logging.getLogger("mcp.server").info("session 1234")
    logging.getLogger("uvicorn.error").info("started")
    assert [line["logger"] for line in lines(stream)] == ["sandbox_mcp.server", "sandbox_core.run", "uvicorn.error"]


def test_nothing_reaches_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    get_logger("sandbox").warning("careful")
    logging.getLogger().warning("careful too")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 2


def test_basic_config_after_it_adds_nothing() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream)
    logging.basicConfig(level="DEBUG")
    get_logger("sandbox").info("once")
    assert len(lines(stream)) == 1


def test_warnings_are_logged() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old way", DeprecationWarning, stacklevel=1)
    assert "old way" in lines(stream)[0]["event"]


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["json", "terminal"])
def test_no_secret_gets_through(stream: io.StringIO) -> None:
    configure_logging(stream=stream, secrets=[TOKEN], level="DEBUG")
    log = get_logger("sandbox")
    log.info(f"client sent {TOKEN}", auth_token="s3cret", nested={"Authorization": "s3cret", "list": [TOKEN]})
    log.info("connect redis://user:s3cret@host:6379/0 and redis://:s3cret@host", url="amqp://u:s3cret@host")
    log.info("header Authorization: Bearer s3cret", query="/mcp?token=s3cret&x=1", kind='{"password": "s3cret"}')
    logging.getLogger("other").warning("got %s", f"Bearer {TOKEN}", extra={"cookie": "s3cret", "raw": b"s3cret"})
    try:
        int(f"bad token {TOKEN} for redis://u:s3cret@h")
    except ValueError:
        log.exception("failed")
    text = stream.getvalue()
    assert "s3cret" not in text
    assert TOKEN not in text
    assert "redis://user:[redacted]@host" in text
    assert "ValueError" in text


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["json", "terminal"])
def test_a_value_cannot_forge_a_line_or_steer_a_terminal(stream: io.StringIO) -> None:
    configure_logging(stream=stream)
    hostile = 'x\n{"event": "forged"}\r\x1b]0;title\x07\x9b31m\u2028\u202e\ud800'
    get_logger("sandbox").warning(hostile, path=hostile, nested=[hostile])
    text = stream.getvalue()
    assert len(text.splitlines()) == 1
    assert not set("\r\x07\x9b\u2028\u202e\ud800") & set(text)
    assert "\x1b]" not in text
    assert "\\n" in text


@pytest.mark.timeout(20)
@pytest.mark.parametrize("piece", ["x", "a-", "bearer ", "a://b:", "token=", "token ", "://:"])
def test_an_endless_value_is_cut_and_costs_little(piece: str) -> None:
    stream = io.StringIO()
    configure_logging(stream=stream)
    log = get_logger("sandbox")
    for _ in range(20):
        log.info(piece * 1_000_000)
    assert len(stream.getvalue()) < 20 * 40_000


def test_the_file_gets_json_whatever_the_terminal_shows(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    configure_logging(stream=Terminal(), log_file=str(path), secrets=[TOKEN])
    get_logger("sandbox").info("ExecutionManager initialised", note=TOKEN)
    (line,) = [json.loads(text) for text in path.read_text().splitlines()]
    assert line["event"] == "ExecutionManager initialised"
    assert TOKEN not in path.read_text()


def test_a_default_file_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    stream = io.StringIO()
    configure_logging(stream=stream, log_file=str(tmp_path / "none" / "server.log"))
    (line,) = lines(stream)
    assert line["level"] == "warning"
    assert "server.log" in line["problem"]


def test_a_file_that_the_operator_named_has_to_be_writable(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"SANDBOX_LOG_FILE: .*cannot be written"):
        configure_logging(stream=io.StringIO(), log_file=str(tmp_path), log_file_required=True)
