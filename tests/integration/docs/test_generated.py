"""The parts of docs/ that are facts of the code are up to date, and what the documents point to is there."""

from __future__ import annotations

import json
import re
import subprocess  # noqa: TID251  # the generator is a program
import sys
from pathlib import Path

import pytest

from sandbox_adapters.policy_input import parse_policy
from tests.integration.docs.markdown import ROOT, blocks

DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)#:]*)(?:#([^)]*))?\)")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.integration
def test_generated_parts_match_the_code() -> None:
    argv = [sys.executable, str(ROOT / "scripts" / "generate_docs.py"), "--check"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{done.stdout}{done.stderr} (make docs writes them)"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    missing = []
    for path, anchor in LINK.findall(document.read_text(encoding="utf-8")):
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(f"{path}#{anchor}")
    assert missing == []


def anchors(document: Path) -> set[str]:
    """Return what links may name in a document: its headings in small letters, spaces as dashes, no punctuation."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", document.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_decisions_have_a_number_each_and_no_number_is_left_out() -> None:
    files = sorted((ROOT / "docs" / "adr").glob("*.md"))
    assert [int(file.name[:4]) for file in files] == list(range(1, len(files) + 1))
    for number, file in enumerate(files, 1):
        assert file.read_text(encoding="utf-8").startswith(f"# {number}. "), file.name


def test_every_policy_example_is_accepted() -> None:
    examples = [json.loads(item.text) for item in blocks("docs/configuration.md") if item.language == "json"]
    policies = [parse_policy(example) for example in examples if "resource_limits" in example]
    assert len(policies) == 1


def test_tests_named_in_the_threat_model_exist() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|src)/[\w/]+\.py|…)((?:::\w+)*)`", text)
    assert len(named) > 100
    path = ""
    for name, tests in named:
        path = path if name == "…" else name  # stands for the file that was named last
        source = (ROOT / path).read_text(encoding="utf-8")
        for test in tests.split("::")[1:]:
            assert re.search(rf"\b(?:def|class) {test}\b", source), f"{path}::{test}"


def test_every_promise_names_a_test() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    rows = [row for row in re.findall(r"^\|.*\|$", text, re.MULTILINE) if not row.startswith(("| promise", "| ---"))]
    assert len(rows) > 60
    assert [row for row in rows if not re.search(r"`(?:tests|src)/[\w/]+\.py", row.split("|")[-2])] == []
