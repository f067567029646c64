"""How the small programs in `child` are started."""

from __future__ import annotations

import sys
from pathlib import Path

_CODE = "import sys; sys.path.append({folder!r}); from runners.child.{module} import main; main(sys.argv[1:])"


def command(module: str, *arguments: str) -> list[str]:
    """Return the argv that runs `runners.child.MODULE` in an interpreter that sees the standard library only.

    `-I -S` keeps it from reading the environment, the user's and the working directory, and any site-packages.
    """
    folder = str(Path(__file__).resolve().parent.parent)
    return [sys.executable, "-I", "-S", "-c", _CODE.format(folder=folder, module=module), *arguments]
