"""In CI a skipped test is a failed one, unless its reason says why there is nothing to test.

A reason that begins with "does not apply" names what this machine, user or adapter is, such as another processor.
Every other reason names something that is missing, and so hides a promise that nobody checked.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import TypeVar

import pytest

ReportT = TypeVar("ReportT", pytest.TestReport, pytest.CollectReport)

LEGITIMATE = "does not apply"


def pytest_configure(config: pytest.Config) -> None:
    """Turn skips into failures when CI=true."""
    if os.environ.get("CI") == "true":
        config.pluginmanager.register(_SkipsFail())


class _SkipsFail:
    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        return _failed_when_skipped(report)

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        return _failed_when_skipped(report)


def _failed_when_skipped(report: ReportT) -> ReportT:
    if not report.skipped or hasattr(report, "wasxfail"):
        return report
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not reason.startswith(LEGITIMATE):
        report.outcome = "failed"
        report.longrepr = f"skipped, which in CI is a failure: {reason}"
    return report
