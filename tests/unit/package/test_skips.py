"""A skip that hides something missing is a failure in CI."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

_SKIPPING = """
import pytest

@pytest.mark.skipif(True, reason="a tool is not installed")
def test_marked(): ...

def test_called():
    pytest.skip("the kernel lacks it")

@pytest.fixture
def missing():
    pytest.importorskip("no_such_module")

def test_asking(missing): ...

@pytest.mark.skipif(True, reason="does not apply: another processor")
def test_elsewhere(): ...

@pytest.mark.xfail(reason="known")
def test_expected_to_fail():
    raise ValueError

def test_passing(): ...
"""
_SKIPPED_WHOLE = "import pytest\npytest.importorskip('no_such_module')\n"


def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, ci: str) -> pytest.RunResult:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    return pytester.runpytest_subprocess("-p", "tests.skips", "-p", "no:cacheprovider")


def test_in_ci_only_skips_that_say_why_they_do_not_apply_are_skips(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(_SKIPPING)
    result = run(pytester, monkeypatch, "true")
    result.assert_outcomes(passed=1, skipped=1, xfailed=1, failed=1, errors=2)
    result.stdout.fnmatch_lines(["*skipped, which in CI is a failure: a tool is not installed"])


def test_in_ci_a_file_that_skips_itself_is_a_failure(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(_SKIPPED_WHOLE)
    result = run(pytester, monkeypatch, "true")
    result.assert_outcomes(errors=1)
    assert result.ret != 0


def test_elsewhere_a_skip_is_a_skip(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makepyfile(_SKIPPING)
    run(pytester, monkeypatch, "").assert_outcomes(passed=1, skipped=4, xfailed=1)
