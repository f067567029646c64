"""From what is to be done to which path, to the steps of the launcher's child in their order. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from sandbox_adapters.runners.child.grant_mounts import HIDE, PIN
from sandbox_adapters.runners.grants import Access, Grants
from sandbox_core.domain.policy import path_within


def access_at(grants: Grants, path: str) -> Access:
    """Return the access of the innermost region around a path; NONE outside of all."""
    around = [region for region in grants.regions if path_within(path, region.path)]
    return max(around, key=lambda region: len(region.path)).access if around else Access.NONE


def steps_of(
    number: int, top: str, marks: Mapping[str, str], directories: Mapping[str, bool], grants: Grants
) -> list[dict[str, Any]]:
    """Return the steps for one outermost region, outer paths first (`grant_mounts.enter`).

    Where something can be renamed, every directory on the way to a mark is pinned: a mount point cannot be renamed, but
    what is around it could.

    Args:
        number: of the region; its place on the stage.
        top: its path.
        marks: path -> what is done to it, for all regions.
        directories: region -> whether it is a directory.
        grants: all regions.
    """
    inside = {path: mark for path, mark in marks.items() if path != top and path_within(path, top)}
    for path in tuple(inside):
        for parent in PurePosixPath(path).parents:
            way = str(parent)
            if way == top:
                break
            if way not in inside and access_at(grants, way) is Access.WRITE:
                inside[way] = PIN
    hidden = [path for path, mark in inside.items() if mark == HIDE]
    steps = []
    for path in (top, *sorted(inside, key=lambda path: (path.count("/"), path))):
        kind = marks[top] if path == top else inside[path]
        place = f"{number}{path[len(top) :]}"
        holes = _holes(path, hidden, marks, directories, grants) if kind == HIDE else []
        steps.append({"kind": kind, "path": path, "place": place, "top": path == top, "holes": holes})
    return steps


def _holes(
    path: str, hidden: list[str], marks: Mapping[str, str], directories: Mapping[str, bool], grants: Grants
) -> list[list[Any]]:
    """Return what is granted in a hidden directory and in no hidden one below it, and whether it is a directory."""
    found: list[list[Any]] = []
    for region in grants.below(path):
        around = (other for other in hidden if other != region.path and path_within(region.path, other))
        if region.access is not Access.NONE and region.path in marks and max(around, key=len) == path:
            found.append([region.path[len(path) + 1 :], directories[region.path]])
    return found
