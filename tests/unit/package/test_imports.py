"""The core can be imported alone."""

from __future__ import annotations

import json
import subprocess  # noqa: TID251  # a clean interpreter is a new process
import sys
from importlib.metadata import requires
from pathlib import Path

import sandbox_core

PROGRAM = """
import importlib, json, pkgutil, sys
import sandbox_core
for module in pkgutil.walk_packages(sandbox_core.__path__, "sandbox_core."):
    if not module.name.startswith("sandbox_core.testing"):
        importlib.import_module(module.name)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
OF_ANYIO = {"anyio", "idna", "sniffio", "typing_extensions"}
"""sniffio is no requirement of anyio any more, but imported where it is installed (trio brings it)."""
OWN = {"sandbox_core"}


def loaded_top_level_modules() -> set[str]:
    done = subprocess.run([sys.executable, "-I", "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    return set(json.loads(done.stdout))


def test_core_loads_no_third_party_module_but_anyio() -> None:
    standard = set(sys.stdlib_module_names) | {"__main__", "_distutils_hack", "sitecustomize", "usercustomize"}
    third_party = {name for name in loaded_top_level_modules() - standard if not name.startswith(("__editable__", "_"))}
    assert third_party - OF_ANYIO == OWN
    assert "anyio" in third_party


def test_names_excused_for_anyio_are_its_own_requirements() -> None:
    needed = {
        requirement.split(";")[0].split(">")[0].strip().replace("-", "_") for requirement in requires("anyio") or ()
    }
    assert OF_ANYIO - {"anyio", "sniffio"} <= needed


def test_every_package_says_it_is_typed() -> None:
    source = Path(sandbox_core.__file__).parent.parent
    packages = [path for path in source.iterdir() if (path / "__init__.py").is_file()]
    assert {path.name for path in packages} == {"sandbox_core", "sandbox_adapters", "sandbox_mcp"}
    assert all((path / "py.typed").is_file() for path in packages)
