"""Adapters of the ports, settings, and the composition root.

`from sandbox_adapters import Settings, open_sandbox` is all that another application needs; the names here are
imported when they are first used, so that importing one adapter does not load the others.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandbox_adapters.results import Health, RunResult
    from sandbox_adapters.sandbox import Sandbox, open_sandbox
    from sandbox_adapters.settings import Settings, SettingsError

__all__ = ["Health", "RunResult", "Sandbox", "Settings", "SettingsError", "open_sandbox"]

_HOME = {
    "Health": "results",
    "RunResult": "results",
    "Sandbox": "sandbox",
    "Settings": "settings",
    "SettingsError": "settings",
    "open_sandbox": "sandbox",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
