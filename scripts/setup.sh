#!/usr/bin/env bash
# Make .venv with everything that requirements/dev.txt pins, and this package in it. `make setup` calls it.
# PYTHON names the interpreter to use; else the first Python 3.11 or later that is found.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly venv=${VENV:-.venv}

suits() {
    "$1" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3 python3.11 python3.12 python3.13 python3.14 \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[1-9].*/bin/python3; do
        if suits "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    echo "make setup: no Python 3.11 or later with the venv module was found." >&2
    echo "  Install one (Debian and Ubuntu: apt-get install python3 python3-venv)," >&2
    echo "  or name one: make setup PYTHON=/path/to/python3" >&2
    return 1
}

ensure_pip() {
    "$1" -c 'import ensurepip' >/dev/null 2>&1 && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "setup: this Python has no ensurepip; installing python3-venv"
        apt-get install -y -q python3-venv >/dev/null 2>&1 ||
            { apt-get update -q >/dev/null && apt-get install -y -q python3-venv >/dev/null; }
    fi
    "$1" -c 'import ensurepip' >/dev/null 2>&1 ||
        { echo "make setup: $1 has no ensurepip. Debian and Ubuntu: apt-get install python3-venv" >&2; return 1; }
}

python=$(find_python)
echo "setup: $("$python" --version) from $python into $venv"
if ! { [ -x "$venv/bin/python" ] && suits "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }; then
    ensure_pip "$python"
    rm -rf "$venv"
    "$python" -m venv "$venv"
fi
pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet)
# pip's remark about a location that is not there is noise for everybody but the one who configured it.
"${pip[@]}" --require-hashes --requirement requirements/dev.txt 2> >(grep -v '^WARNING: Location' >&2)
"${pip[@]}" --no-deps --no-build-isolation --editable . 2> >(grep -v '^WARNING: Location' >&2)
echo "setup: done. Try: make demo"
