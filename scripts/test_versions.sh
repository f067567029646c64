#!/usr/bin/env bash
# Run the unit tests and the contract suites on every CPython from 3.11 on that this machine has (python3.1x on the
# PATH, and pyenv's). Each gets an environment of its own in .venvs/, with the same pins.
set -euo pipefail
cd "$(dirname "$0")/.."

declare -A found=()
for candidate in python3.1{1..9} "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[1-9].*/bin/python3; do
    path=$(command -v "$candidate") || continue
    version=$("$path" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    found[$version]=${found[$version]:-$path}
done
[ "${#found[@]}" -gt 0 ] || { echo "test-versions: no CPython 3.11 or later was found" >&2; exit 1; }

failed=()
for version in $(printf '%s\n' "${!found[@]}" | sort -V); do
    echo "=== Python $version (${found[$version]})"
    VENV=.venvs/$version PYTHON=${found[$version]} bash scripts/setup.sh
    ".venvs/$version/bin/python" -m pytest -q -p no:cacheprovider tests/unit tests/contracts || failed+=("$version")
done
echo "=== tested: $(printf '%s\n' "${!found[@]}" | sort -V | tr '\n' ' ')failed: ${failed[*]:-none}"
[ "${#failed[@]}" = 0 ]
