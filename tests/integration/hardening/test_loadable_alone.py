"""The modules load in the small programs beside the server: no site-packages, nothing of the server."""

from __future__ import annotations

import json
import subprocess  # noqa: TID251 - starts an interpreter of its own
import sys
from pathlib import Path

import pytest

from sandbox_adapters.runners import hardening

pytestmark = pytest.mark.integration

_SCRIPT = """
import sys, json
before = set(sys.modules)
sys.path.append({folder!r})
from hardening import bpf, cgroup_leaf, cgroup_paths, cgroups, landlock, seccomp
seccomp.build_filter(); landlock.detect(); cgroups.open_cgroups().close()
own = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(json.dumps(sorted(own - set(sys.stdlib_module_names))))
"""


def test_standard_library_is_all_they_need() -> None:
    folder = str(Path(hardening.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _SCRIPT.format(folder=folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["hardening"]
