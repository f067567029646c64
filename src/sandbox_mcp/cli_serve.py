"""`sandbox serve` and `sandbox worker`: settings from flags and environment, logging, then the server."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from typing import Any

from sandbox_adapters.auth_tokens import load_auth_tokens
from sandbox_adapters.logging import configure_logging, get_logger
from sandbox_adapters.redis_options import check_redis, redis_secrets
from sandbox_adapters.settings import Settings, check_exposure
from sandbox_core.domain.errors import InfrastructureError

EXIT_FAILED = 1


def run_server(transport: str, flags: Mapping[str, Any]) -> int:
    """Serve until told to stop; return 0 after a clean stop, 1 when the server could not work.

    Raises SettingsError when settings cannot be used.
    """
    settings = Settings(**flags)
    check_redis(settings)
    if transport == "http":
        check_exposure(settings)
        _configure_logging(settings)
        _hint_at_stdio()
    else:
        # A host starts us where its user works, and keeps our stderr: no file that nobody asked for is left there.
        _configure_logging(settings, file_by_default=False)
    from sandbox_mcp.serve import serve_http, serve_stdio

    return _exit_code_of(serve_http if transport == "http" else serve_stdio, settings)


def run_worker(flags: Mapping[str, Any]) -> int:
    """Work until told to stop; return and raise as `run_server` does."""
    settings = Settings(**flags)
    check_redis(settings)
    from sandbox_mcp.worker import check_worker, work

    check_worker(settings)
    _configure_logging(settings)
    return _exit_code_of(work, settings)


def _hint_at_stdio() -> None:
    """Say what a host needs that started us and now waits for an answer on our standard output."""
    modes = [os.fstat(descriptor).st_mode for descriptor in (0, 1)]
    if all(stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) for mode in modes):
        get_logger(__name__).warning("Serving HTTP; a host that talks on standard input needs --transport stdio")


def _configure_logging(settings: Settings, *, file_by_default: bool = True) -> None:
    is_named = "log_file" in settings.model_fields_set
    tokens = list(load_auth_tokens(settings).values())
    if settings.metrics_token is not None:
        tokens.append(settings.metrics_token)
    configure_logging(
        level=settings.log_level,
        log_file=settings.log_file if is_named or file_by_default else "",
        log_file_required=is_named,
        secrets=[*(token.get_secret_value() for token in tokens), *redis_secrets(settings)],
    )


def _exit_code_of(serve: Callable[[Settings], None], settings: Settings) -> int:
    try:
        serve(settings)
    except InfrastructureError as error:
        get_logger(__name__).error("The server cannot work", code=error.code, problem=str(error))
        return EXIT_FAILED
    return 0
