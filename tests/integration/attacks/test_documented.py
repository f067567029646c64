"""docs/attacks.md names tests that there are."""

from __future__ import annotations

import re

import pytest

from tests.integration.docs.markdown import ROOT

_NAMED = re.compile(r"`((?:tests|src)/[\w/]+\.py)(?:::(\w+))?`")
NAMED = sorted(set(_NAMED.findall((ROOT / "docs" / "attacks.md").read_text(encoding="utf-8"))))


@pytest.mark.parametrize(("path", "test"), NAMED, ids=["::".join(filter(None, each)) for each in NAMED])
def test_a_named_test_exists(path: str, test: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert not test or re.search(rf"def {test}\(", text)
