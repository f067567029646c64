"""Public helpers for tests of applications and adapters.

Fakes: `ScriptedRunner` (a runner that answers from a script) and `FakeClock` (time that moves on `advance`); pytest
offers both as fixtures, see `pytest_plugin`. Contract suites to subclass, one per port, in `store_contract`,
`queue_contract`, `control_contract`, `clock_contract`, `runner_contract` and `fleet_contract`; `store_machine` drives a
store against a model (needs hypothesis). `history` judges what a fleet did, after faults. Ready-made values are in
`samples`.

The names below are imported when they are used, so that the pytest plugin costs nothing where it is not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandbox_core.testing.fake_clock import FakeClock
    from sandbox_core.testing.scripted_runner import EchoInput, Pause, Print, Script, ScriptedRunner

__all__ = ["EchoInput", "FakeClock", "Pause", "Print", "Script", "ScriptedRunner"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "fake_clock" if name == "FakeClock" else "scripted_runner"
    return getattr(import_module(f"{__name__}.{module}"), name)
