"""The host paths that every command of a server sees besides the system's own: checked before anything is started."""

from __future__ import annotations

import os

from sandbox_adapters.runners.bubblewrap_options import readable_roots
from sandbox_adapters.settings import Settings, SettingsError


def visible_paths(settings: Settings) -> list[str]:
    """Return `read_only_paths` as text. Raises SettingsError for one that no sandbox can show."""
    paths = [str(path) for path in settings.read_only_paths]
    try:
        readable_roots(paths)
    except ValueError as error:
        raise SettingsError(f"SANDBOX_READ_ONLY_PATHS: {error}") from None
    for path in paths:
        if not os.path.lexists(path):
            raise SettingsError(f"SANDBOX_READ_ONLY_PATHS: {path!r} does not exist")
    return paths
