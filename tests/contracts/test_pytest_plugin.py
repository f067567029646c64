"""The pytest plugin gives its fixtures to any project, and costs nothing where they are not used."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

import sandbox_core.ports
from sandbox_core.testing import FakeClock, Script, ScriptedRunner, pytest_plugin

pytest_plugins = ["pytester"]

_A_PROJECT = """
import pytest
from sandbox_core.testing import Script
from sandbox_core.testing.clock_contract import ClockContract

def test_fixtures(fake_clock, scripted_runner):
    assert fake_clock.monotonic() == 0
    assert scripted_runner({"make test": Script(stdout=b"ok")}).launches == []

class TestClock(ClockContract):
    @pytest.fixture
    def anyio_backend(self):
        return "asyncio"

    @pytest.fixture
    def clock(self, fake_clock):
        return fake_clock

    @pytest.fixture
    def pass_time(self, fake_clock):
        return fake_clock.advance
"""

_LOADS_NOTHING = """
import sys

def test_nothing_else_was_loaded():
    heavy = {"pydantic", "mcp", "hypothesis", "structlog", "sandbox_adapters", "sandbox_mcp"}
    ours = {name for name in sys.modules if name.startswith("sandbox_core.")}
    assert ours == {"sandbox_core.testing", "sandbox_core.testing.pytest_plugin"}
    assert not heavy & {name for name in sys.modules if "." not in name}
"""

_QUIET = ("-p", "no:cacheprovider", "-W", "error", "-p", "no:hypothesispytest")


def test_another_projects_tests_use_the_fixtures_and_suites(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(_A_PROJECT)
    result = pytester.runpytest_subprocess(*_QUIET)
    result.assert_outcomes(passed=10)


def test_loading_the_plugin_loads_nothing_else(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(_LOADS_NOTHING)
    pytester.runpytest_subprocess(*_QUIET).assert_outcomes(passed=1)


def test_the_runner_fixture_makes_runners_on_the_fake_clock(
    scripted_runner: Callable[..., ScriptedRunner], fake_clock: FakeClock
) -> None:
    runner = scripted_runner({"make test": Script(stdout=b"ok\n")})
    assert isinstance(runner, ScriptedRunner)
    assert runner._clock is fake_clock


def test_a_failed_assert_of_any_suite_shows_both_sides() -> None:
    folder = Path(pytest_plugin.__file__).parent
    asserting = {
        file.stem
        for file in folder.glob("*.py")
        if any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(file.read_text())))
    }
    assert asserting <= set(pytest_plugin._SUITES)


def test_every_port_has_a_contract_suite() -> None:
    ports = {file.stem for file in Path(sandbox_core.ports.__path__[0]).glob("[!_]*.py")}
    suites = {file.stem for file in Path(pytest_plugin.__file__).parent.glob("*_contract.py")}
    assert len(ports) >= 6
    assert {f"{port}_contract" for port in ports} == suites


def test_unknown_names_of_the_testing_package_are_attribute_errors() -> None:
    import sandbox_core.testing as testing

    assert Path(testing.__file__ or "").name == "__init__.py"
    with pytest.raises(AttributeError, match="Nothing"):
        testing.Nothing  # noqa: B018  # the access is the test
