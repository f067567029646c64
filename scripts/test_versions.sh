#!/usr/bin/env bash
# Run tests on every CPython that the project supports and this machine has (python3.1x on the PATH, and pyenv's), side
# by side. Each gets an environment of its own in .venvs/, with the same pins. Says which versions are not here.
#
#     scripts/test_versions.sh [--others] [PYTEST_ARGUMENT...]
#
# --others leaves out the version of .venv, whose tests run anyway. The tests are unit tests and contract suites unless
# arguments name others. Exits 1 when a version fails, or when there is none.
set -euo pipefail
cd "$(dirname "$0")/.."

skipped=
if [ "${1:-}" = --others ]; then
    shift
    skipped=$("${VENV:-.venv}/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
fi
[ "$#" -gt 0 ] || set -- tests/unit tests/contracts

find_version() {
    local candidate
    for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python3; do
        if [ "$("$candidate" -c 'import sys, venv; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$1" ]; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

set_up() {
    local stamp=.venvs/$1/.setup-done
    [ "$stamp" -nt requirements/dev.txt ] && [ "$stamp" -nt pyproject.toml ] && return
    VENV=.venvs/$1 PYTHON=$2 bash scripts/setup.sh && touch "$stamp"
}

declare -A running=()
missing=()
mkdir -p .venvs
set -m # a process group for each, so that an interrupt ends what they started
trap 'for pid in "${running[@]}"; do kill -- "-$pid" 2>/dev/null || true; done' EXIT
while read -r version; do
    [ "$version" != "$skipped" ] || continue
    if ! python=$(find_version "$version"); then
        missing+=("$version")
        continue
    fi
    { set_up "$version" "$python" && ".venvs/$version/bin/python" -m pytest -q -p no:cacheprovider "$@"; } \
        >".venvs/$version.log" 2>&1 </dev/null &
    running[$version]=$!
done < <(sed -n 's/^ *"Programming Language :: Python :: \(3\.[0-9]*\)".*/\1/p' pyproject.toml)

failed=()
for version in $(printf '%s\n' "${!running[@]}" | sort -V); do
    result=passed
    wait "${running[$version]}" || { result=failed; failed+=("$version"); cat ".venvs/$version.log"; }
    echo "=== Python $version: $result: $(tail -n 1 ".venvs/$version.log")"
done
trap - EXIT
[ "${#missing[@]}" = 0 ] || echo "*** NOT TESTED: Python ${missing[*]}, which this machine does not have." >&2
if [ -z "$skipped" ] && [ "${#running[@]}" = 0 ]; then
    echo "test-versions: no CPython that the project supports was found" >&2
    exit 1
fi
[ "${#failed[@]}" = 0 ]
