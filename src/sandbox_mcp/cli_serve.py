"""`sandbox serve` and `sandbox worker`: settings from flags and environment, logging, then the server."""

from __future__ import annotations

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


def _configure_logging(settings: Settings) -> None:
    tokens = list(load_auth_tokens(settings).values())
    if settings.metrics_token is not None:
        tokens.append(settings.metrics_token)
    configure_logging(
        level=settings.log_level,
        log_file=settings.log_file,
        log_file_required="log_file" in settings.model_fields_set,
        secrets=[*(token.get_secret_value() for token in tokens), *redis_secrets(settings)],
    )


def _exit_code_of(serve: Callable[[Settings], None], settings: Settings) -> int:
    try:
        serve(settings)
    except InfrastructureError as error:
        get_logger(__name__).error("The server cannot work", code=error.code, problem=str(error))
        return EXIT_FAILED
    return 0
