"""Logging: one pipeline for our loggers and everyone else's; to stderr and a rotating file, never to stdout.

Our code logs with `get_logger(__name__)`, which goes through the standard library: an application that embeds Sandbox
gets ordinary records and keeps its own handlers. `configure_logging` is for programs of ours.
"""

from __future__ import annotations

import codecs
import logging
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from sandbox_adapters.log_file import RotatingLogFile
from sandbox_adapters.settings import SettingsError

REDACTED = "[redacted]"
LARGEST_TEXT = 8192
"""Characters of one logged value; the rest is cut, since a log is no place for output."""

_SECRET_KEYS = re.compile(r"token|authorization|password|passwd|secret|api_?key|cookie|credential", re.IGNORECASE)
# Every repetition is bounded, so that no text can make a search slow.
_URL_PASSWORD = re.compile(
    r"(?P<start>(?<![a-z0-9+.-])[a-z][a-z0-9+.-]{0,30}://[^\s:/@]{0,256}:)[^\s/]{1,512}@", re.IGNORECASE
)
_BEARER = re.compile(r"(?P<start>\bbearer\s{1,8})[^\s\"',;]+", re.IGNORECASE)
_ASSIGNED = re.compile(
    r"(?P<start>(?:token|password|passwd|secret|api_?key)[\"']?\s{0,8}[=:]\s{0,8}[\"']?)[^\s\"'&,;]+", re.IGNORECASE
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_CONTROL_IN_TRACEBACK = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_ESCAPE = codecs.getencoder("unicode_escape")
"""Loaded now: when it is needed there may be no descriptor left to read its file with."""
_OURS = ("sandbox_core", "sandbox_adapters", "sandbox_mcp")
_QUIET = ("uvicorn", "httpx", "httpcore", "asyncio")
_SILENT = ("mcp", "uvicorn.access")
"""Below a warning these show what lets a caller in: an older client's session id, and query strings, in which callers
put what belongs into headers."""

_TOLD_BY_US = ("aio_pika", "aiormq")
"""Clients whose failures our connection tells, once in a row; their own words come with every attempt."""


class _NoWireData(logging.Filter):
    """Drops other libraries' debugging: theirs shows what goes over the wire, which is output and input."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.INFO or record.name.partition(".")[0] in _OURS


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return a structlog logger over `logging.getLogger(name)`; its fields become the record's `extra`."""
    return cast(
        "structlog.stdlib.BoundLogger",
        structlog.wrap_logger(
            logging.getLogger(name),
            processors=[structlog.stdlib.filter_by_level, structlog.stdlib.render_to_log_kwargs],
            wrapper_class=structlog.stdlib.BoundLogger,
        ),
    )


class Redactor:
    """A processor that takes secrets and control characters out of every value.

    Args:
        secrets: texts that must never be shown, for example the server's tokens.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets = tuple(sorted((secret for secret in secrets if secret), key=len, reverse=True))

    def __call__(self, _logger: WrappedLogger, _name: str, event_dict: EventDict) -> EventDict:
        """Return the event with every key and value cleaned."""
        return {self._text(key): self._field(key, value) for key, value in event_dict.items()}

    def _field(self, key: str, value: Any) -> Any:
        if key == "exception" and isinstance(value, str):
            return self._text(value, _CONTROL_IN_TRACEBACK, 8 * LARGEST_TEXT)
        if _SECRET_KEYS.search(key):
            return REDACTED
        return self._value(value)

    def _value(self, value: Any) -> Any:
        match value:
            case None | bool() | int() | float():
                return value
            case str():
                return self._text(value)
            case bytes() | bytearray() | memoryview():
                return f"<{len(value)} bytes>"
            case Mapping():
                return {self._text(str(key)): self._field(str(key), item) for key, item in value.items()}
            case list() | tuple() | set() | frozenset():
                return [self._value(item) for item in value]
            case _:
                return self._text(str(value))

    def _text(self, text: str, control: re.Pattern[str] = _CONTROL, limit: int = LARGEST_TEXT) -> str:
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        cut = len(text) - limit
        text = text[:limit]
        text = _URL_PASSWORD.sub(rf"\g<start>{REDACTED}@", text)
        text = _BEARER.sub(rf"\g<start>{REDACTED}", text)
        text = _ASSIGNED.sub(rf"\g<start>{REDACTED}", text)
        text = control.sub(_escaped, text)
        return text if cut <= 0 else f"{text}… and {cut} characters more"


def configure_logging(
    *,
    level: str = "INFO",
    log_file: str = "",
    log_file_required: bool = False,
    secrets: Iterable[str] = (),
    stream: TextIO | None = None,
) -> None:
    """Send every log record to stderr, and to `log_file` unless that is empty. Replaces earlier handlers.

    Call it before an MCP server is made: that calls `logging.basicConfig`, which does nothing when handlers exist.
    uvicorn must be started with `log_config=None`, so that it leaves its loggers alone.

    Args:
        level: least level that is logged; other libraries' INFO is left out unless it is DEBUG, and their DEBUG always.
        log_file_required: True when an operator named the file: one that cannot be written is then a SettingsError,
            else a warning.
        secrets: texts that must never be logged.
        stream: where to log beside the file; stderr by default. For people on a terminal, JSON lines otherwise.
    """
    stream = sys.stderr if stream is None else stream
    redactor = Redactor(secrets)
    console = logging.StreamHandler(stream)
    console.setFormatter(_formatter(redactor, human=stream.isatty()))
    handlers: list[logging.Handler] = [console]
    problem = ""
    if log_file:
        try:
            file_handler = RotatingLogFile(log_file)
        except OSError as error:
            problem = f"{log_file!r} cannot be written: {error.strerror or error}"
            if log_file_required:
                raise SettingsError(f'SANDBOX_LOG_FILE: {problem}; name another file, or none with ""') from None
        else:
            file_handler.setFormatter(_formatter(redactor, human=False))
            handlers.append(file_handler)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.addFilter(_NoWireData())
        root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(capture=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(level if level in {"DEBUG", "WARNING", "ERROR"} else "WARNING")
    for name in _SILENT:
        logging.getLogger(name).setLevel("ERROR" if level == "ERROR" else "WARNING")
    for name in _TOLD_BY_US:
        logging.getLogger(name).setLevel("DEBUG" if level == "DEBUG" else "CRITICAL")
    if problem:
        get_logger(__name__).warning("Logging to stderr only", problem=problem)


def _formatter(redactor: Redactor, *, human: bool) -> logging.Formatter:
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if human
        else structlog.processors.JSONRenderer()
    )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            redactor,
            renderer,
        ],
    )


def _escaped(match: re.Match[str]) -> str:
    return _ESCAPE(match.group())[0].decode("ascii")
