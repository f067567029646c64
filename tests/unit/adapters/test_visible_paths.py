"""SANDBOX_READ_ONLY_PATHS: what no sandbox can show is refused by name, before anything is started."""

from __future__ import annotations

import pytest

from sandbox_adapters.doctor import diagnose
from sandbox_adapters.sandbox import open_sandbox
from sandbox_adapters.settings import Settings, SettingsError
from sandbox_adapters.visible_paths import visible_paths

pytestmark = pytest.mark.anyio


def settings_for(*paths: str) -> Settings:
    return Settings.model_validate({"read_only_paths": paths, "log_file": ""})


def test_what_is_there_is_shown() -> None:
    assert visible_paths(settings_for("/opt", "/srv")) == ["/opt", "/srv"]


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/", "'/' is in the way of a directory that the sandbox has of its own"),
        ("/proc/self", "'/proc/self' is in the way of"),
        ("/tmp/x", "'/tmp/x' is in the way of"),
        ("/opt/../srv", "must be absolute, without `..`"),
        ("/opt-that-is-not-there", "'/opt-that-is-not-there' does not exist"),
    ],
)
async def test_every_way_in_names_the_setting(path: str, problem: str) -> None:
    settings = settings_for(path)
    with pytest.raises(SettingsError, match=rf"^SANDBOX_READ_ONLY_PATHS: .*{problem}"):
        visible_paths(settings)
    with pytest.raises(SettingsError, match=r"^SANDBOX_READ_ONLY_PATHS: "):
        await diagnose(settings)
    with pytest.raises(SettingsError, match=r"^SANDBOX_READ_ONLY_PATHS: "):
        async with open_sandbox(settings):
            pass
