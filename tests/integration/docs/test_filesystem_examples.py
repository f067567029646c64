"""What docs/filesystem.md shows can be used as it stands, and its lists are those of the code."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from sandbox_adapters.policy_input import parse_policy
from sandbox_adapters.runners import grant_plan
from sandbox_adapters.runners.bubblewrap_options import readable_roots
from sandbox_adapters.runners.child import grant_check, tree_scan
from sandbox_adapters.runners.child.protected_names import ANYWHERE, is_protected
from sandbox_adapters.runners.granted import Granter
from sandbox_adapters.runners.grants import NEVER_GRANTED, Access, resolve_grants
from sandbox_adapters.runners.hidden_paths import MAX_HIDDEN, hidden_paths
from sandbox_core.domain.policy import ExecutionPolicy, FilesystemPolicy, path_within, resolve
from tests.integration.docs.markdown import blocks

TEXT = Path("docs/filesystem.md").read_text()


def examples(language: str) -> list[str]:
    return [item.text for item in blocks("docs/filesystem.md") if item.language == language]


def test_the_request_fits_the_ceiling() -> None:
    request, hiding = [parse_policy(json.loads(text)) for text in examples("json")]
    [[variable]] = [shlex.split(text) for text in examples("sh")]
    ceiling = parse_policy(json.loads(variable.removeprefix("SANDBOX_CEILING=")))
    resolved = resolve(request, ceiling=ceiling, defaults=ExecutionPolicy())
    assert Granter(readable_roots(), ceiling.filesystem).violations(resolved.filesystem) == []
    assert "/srv/secrets" in resolved.filesystem.deny_read
    assert hidden_paths(hiding.filesystem) == tuple(sorted(hiding.filesystem.deny_read))
    assert f"at most {MAX_HIDDEN} paths" in TEXT


def test_the_table_says_what_the_rules_mean() -> None:
    rows = re.findall(r"^\| (`allow_write`.*) \| (\w+) \| (\w+) \| (\w+) \|$", TEXT, re.MULTILINE)
    assert len(rows) == 5
    words = {"write": Access.WRITE, "read": Access.READ, "nothing": Access.NONE}
    for rules, *expected in rows:
        fields: dict[str, tuple[str, ...]] = {}
        for name, paths in re.findall(r"`(\w+)` ((?:`[^`]+`(?: and )?)+)", rules):
            fields[name] = tuple(re.findall(r"`([^`]+)`", paths))
        regions = resolve_grants(FilesystemPolicy(**fields)).regions
        for path, word in zip(("/p/x", "/p/a/x", "/p/a/b/x"), expected, strict=True):
            around = [region for region in regions if path_within(path, region.path)]
            assert max(around, key=lambda region: len(region.path)).access is words[word], (rules, path)


def test_the_protected_names_are_those_of_the_code() -> None:
    [listed] = examples("text")
    assert set(listed.split()) == ANYWHERE
    for parent, names in re.findall(r"`(\.\w+)/\{([^}]+)\}`", TEXT):
        assert all(is_protected(name, parent) for name in names.split(","))


def test_the_bounds_are_those_of_the_code() -> None:
    for number in (grant_plan.MAX_ENTRIES, grant_plan.MAX_MOUNTS, grant_check.MAX_ENTRIES):
        assert f"{number:,}" in TEXT
    assert f"{tree_scan.MAX_DEPTH} levels" in TEXT
    assert tree_scan.QUARANTINED in TEXT
    for path in NEVER_GRANTED:
        assert f"`/{path.split('/')[1]}`" in TEXT
