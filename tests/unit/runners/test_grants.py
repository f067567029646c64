"""What a policy's `filesystem` means, before anybody looks at the host."""

from __future__ import annotations

import os
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_adapters.runners.child.path_patterns import PathPatterns
from sandbox_adapters.runners.granted import Granter
from sandbox_adapters.runners.grants import (
    MAX_COMPARED,
    MAX_GRANTED,
    Access,
    grant_violations,
    host_path,
    on_host,
    resolve_grants,
)
from sandbox_core.domain.policy import FilesystemPolicy, path_within

TAKEN = ("/usr", "/etc", "/proc", "/dev", "/workspace", "/tmp", "/dev/shm", "/bin", "/opt")
NOBODY = FilesystemPolicy()


def covers(denial: str, path: str) -> bool:
    return PathPatterns((host_path(denial),)).covers(path)


def _violations(policy: FilesystemPolicy, operator: FilesystemPolicy = NOBODY) -> list[str]:
    return [str(found) for found in grant_violations(policy, taken=TAKEN, visible=("/usr", "/opt"), operator=operator)]


def _access(policy: FilesystemPolicy) -> dict[str, Access]:
    return {region.path: region.access for region in resolve_grants(policy).regions}


@pytest.mark.parametrize(
    "path",
    ["/", "/usr/lib", "/etc", "/etc/ssl", "/proc/1", "/dev", "/dev/shm/x", "/bin", "/sys/fs/cgroup", "/run", "/boot",
     "//usr", "/srv/../etc", "/workspace/../proc", "~", "~/project", "~root/x", "/srv/*", "/srv/[ab]", "/srv/{a,b}"],
)  # fmt: skip
def test_what_can_never_be_granted_is_refused_with_a_reason(path: str) -> None:
    found = _violations(FilesystemPolicy(allow_write=(path,)))
    assert len(found) == 1
    assert path in found[0]
    assert "filesystem.allow_write" in found[0]


@pytest.mark.parametrize("path", ["/usr/share", "/opt/tool", "/workspace/x", "src", ".", "/tmp/x", "/tmp"])
def test_reading_what_is_there_anyway_is_no_grant(path: str) -> None:
    policy = FilesystemPolicy(allow_read=(path,))
    assert not on_host(policy, ("/usr", "/opt"))
    assert _violations(policy) == []


def test_most_policies_grant_nothing_of_the_host() -> None:
    granter = Granter(TAKEN, NOBODY)
    assert not granter.asked(NOBODY)
    assert not granter.asked(FilesystemPolicy(allow_write=(".", "/tmp/x"), deny_read=("/srv",)))
    assert granter.asked(FilesystemPolicy(allow_write=("/srv",)))
    assert granter.asked(FilesystemPolicy(allow_read=("/srv",)))


@pytest.mark.parametrize(
    "path",
    ["/srv/.git", "/srv/.git/hooks", "/srv/.GIT/x", "/srv/a/.vscode", "/home/u/.config/fish", "/home/u/.bashrc",
     "/srv/.\u200bgit", "/srv/x.code-workspace", "/home/u/.local/bin"],
)  # fmt: skip
def test_a_protected_name_is_writable_only_where_the_ceiling_names_that_path(path: str) -> None:
    policy = FilesystemPolicy(allow_write=(path,))
    assert "only the operator's ceiling" in _violations(policy, FilesystemPolicy(allow_write=("/srv", "/home")))[0]
    operator = FilesystemPolicy(allow_write=("/srv", "/home", path))
    assert _violations(policy, operator) == []
    regions = resolve_grants(policy, operator=operator.allow_write).regions
    assert [region.exempt for region in regions] == [True]
    assert _violations(FilesystemPolicy(allow_read=(path,))) == []


def test_the_longer_path_decides_and_a_denial_wins_for_the_same() -> None:
    policy = FilesystemPolicy(
        allow_read=("/a/x", "/b", "/c"), allow_write=("/a", "/a/y/z", "/b"),
        deny_read=("/a/y", "/c", "/elsewhere"), deny_write=("/a/w", "/b", "/a/x"),
    )  # fmt: skip
    assert _access(policy) == {
        "/a": Access.WRITE,
        "/a/w": Access.READ,
        "/a/x": Access.READ,
        "/a/y": Access.NONE,
        "/a/y/z": Access.WRITE,
        "/b": Access.READ,
    }


def test_what_the_ceiling_denies_no_longer_path_gets_around() -> None:
    home = os.path.expanduser("~")
    operator = FilesystemPolicy(allow_read=("/srv", home), deny_read=("/srv/secret", "~/.ssh"))
    for path in ("/srv/secret/x", "/srv/secret", f"{home}/.ssh/id"):
        assert "the operator's ceiling denies it" in _violations(FilesystemPolicy(allow_read=(path,)), operator)[0]
    assert _violations(FilesystemPolicy(allow_read=("/srv/a", "/srv/secrets")), operator) == []


def test_a_denial_with_wildcards_wins_over_the_grants_that_it_covers() -> None:
    for denials in ({"deny_write": ("/srv/**/x",)}, {"deny_read": ("/srv/*/x",)}):
        policy = FilesystemPolicy(allow_write=("/srv/a/x/y",), **denials)
        assert "covers it" in _violations(policy)[0]
    assert "braces" in _violations(FilesystemPolicy(allow_read=("/srv",), deny_read=("/srv/{a,b}",)))[0]
    assert _violations(FilesystemPolicy(allow_read=("/srv",), deny_read=("/home/{a,b}", "/srv/*.key"))) == []


@pytest.mark.parametrize(
    ("denial", "path", "covered"),
    [
        ("/p/*.key", "/p/a.key", True),
        ("/p/*.key", "/p/a.key/inside", True),
        ("/p/*.key", "/p/x/a.key", False),
        ("/p/**/*.key", "/p/a.key", True),
        ("/p/**/*.key", "/p/x/y/a.key", True),
        ("/p/**", "/p/x/y", True),
        ("/p/?", "/p/a", True),
        ("/p/?", "/p/ab", False),
        ("/p/[!a]b", "/p/cb", True),
        ("/p/[!a]b", "/p/ab", False),
        ("/p/[slug]", "/p/[slug]", True),
        ("/p/[", "/p/[", True),
        ("/p/[]a]", "/p/]", True),
        ("/p/[a-c]", "/p/b", True),
        ("/p/**/a/**/b", "/p/x/a/a/y/b", True),
        ("/p/**/a/**/b", "/p/x/b/y/a", False),
        ("/p/**/**", "/p", True),
        ("/**/x", "/x", True),
        ("/p/a\\b", "/p/a\\b", True),
        ("/p/x", "/p/xy", False),
        ("/p/./x/../y", "/p/y", True),
        ("/p/*\n*", "/p/a\nb", True),
    ],
)
def test_wildcards_stand_for_parts_of_one_name(denial: str, path: str, covered: bool) -> None:
    assert covers(denial, path) is covered


def test_no_pattern_takes_long() -> None:
    stars = "/p/" + "a*" * 100 + "b"
    assert not covers(stars, "/p/" + "a" * 255)
    assert not covers("/p" + "/**/a" * 200 + "/b", "/p" + "/a" * 60)
    # A path as long as there are, once for each directory above it, is minutes.
    for deep in ("/p/**" + "/a*" * 1300 + "/b", "/p" + "/**" * 1300 + "/b", "/p" + "/**/a" * 800 + "/b"):
        assert not covers(deep, "/p" + "/a" * 2000)


_WILD = st.lists(st.sampled_from(["a", "b", "?", "*", "[ab]", "**", ""]), min_size=1, max_size=5).map("/".join)


@given(pattern=_WILD, path=st.lists(st.sampled_from(["a", "b", "c", "*"]), min_size=1, max_size=5).map("/".join))
def test_a_pattern_covers_what_it_stands_for_and_everything_below(pattern: str, path: str) -> None:
    patterns, path = PathPatterns((host_path(f"/{pattern}"),)), f"/{path}"
    around = (path, *map(str, PurePosixPath(path).parents))
    assert patterns.covers(path) is any(map(patterns.match, around))


def test_grants_and_wildcards_that_take_long_to_compare_are_refused_before() -> None:
    long = tuple(f"/srv/{number}/" + "a/" * 2000 for number in range(16))
    wild = tuple(f"/srv/**/{number}/" + "a*/" * 1300 for number in range(256))
    for policy in (
        FilesystemPolicy(allow_read=long, deny_read=wild),
        FilesystemPolicy(allow_write=long, deny_write=wild),
        FilesystemPolicy(allow_write=("/srv/x",), deny_read=wild),
    ):
        (refused,) = _violations(policy)
        assert "too long to be compared" in refused
        assert str(MAX_COMPARED) in refused
    assert _violations(FilesystemPolicy(allow_read=long, deny_read=("/srv/x/**",))) == []
    assert _violations(FilesystemPolicy(allow_read=("/srv/x",), deny_read=wild[:16])) == []


def test_grants_that_are_too_long_together_are_refused_before_they_are_looked_at() -> None:
    (refused,) = _violations(FilesystemPolicy(allow_write=("/srv/" + "a/" * 2000,) * 17))
    assert f"at most {MAX_GRANTED} letters" in refused
    assert _violations(FilesystemPolicy(allow_write=tuple(f"/srv/{'a' * 200}/{number}" for number in range(256)))) == []


_PATHS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4).map(lambda parts: "/srv/" + "/".join(parts))
_RULES = st.lists(_PATHS, max_size=4).map(tuple)


@given(_RULES, _RULES, _RULES, _RULES, _PATHS)
def test_every_path_has_the_access_that_its_most_specific_rule_says(
    allow_read: tuple[str, ...],
    allow_write: tuple[str, ...],
    deny_read: tuple[str, ...],
    deny_write: tuple[str, ...],
    path: str,
) -> None:
    policy = FilesystemPolicy(
        allow_read=allow_read, allow_write=allow_write, deny_read=deny_read, deny_write=deny_write
    )
    grants = resolve_grants(policy)
    around = [region for region in grants.regions if path_within(path, region.path)]
    found = max(around, key=lambda region: len(region.path)).access if around else Access.NONE
    readable = writable = False
    parts = path.split("/")
    for end in range(2, len(parts) + 1):
        part = "/".join(parts[:end])
        if part in allow_read:
            readable, writable = True, False
        if part in allow_write:
            readable = writable = True
        if part in deny_write:
            writable = False
        if part in deny_read:
            readable = writable = False
    assert found is (Access.WRITE if writable else Access.READ if readable else Access.NONE)


def test_paths_are_folded_as_the_ceiling_folds_them() -> None:
    assert host_path("//srv//a/./b/../c/") == "/srv/a/c"
    assert host_path("a") == "/workspace/a"
    assert host_path("~/x") == os.path.normpath(os.path.expanduser("~/x"))
