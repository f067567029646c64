#!/usr/bin/env bash
# See that the programs which some tests run inside and around the sandbox are there; install them where that is
# possible (root, or sudo without a password, on Debian or Ubuntu). Says what it could not bring. With CI=true a missing one is a failure.
set -euo pipefail

declare -A packages_of=(
    [bash]=bash [bwrap]=bubblewrap [curl]=curl [file]=file [gcc]="gcc libc6-dev" [git]=git [node]=nodejs [npm]=npm
    [/usr/bin/pip3]=python3-pip [redis-server]=redis-server [nginx]=nginx [caddy]=caddy [faketime]=faketime
    [nats-server]=nats-server
    [rabbitmq-server]=rabbitmq-server
    [sqlite3]=sqlite3 [wget]=wget
)

is_there() {
    command -v "$1" >/dev/null || return 1
    [ "$1" != gcc ] || printf '#include <pthread.h>\n#include <asm/unistd.h>\n' | gcc -E - >/dev/null 2>&1
}

missing=()
for program in "${!packages_of[@]}"; do
    is_there "$program" || missing+=("$program")
done
[ "${#missing[@]}" = 0 ] && exit 0

packages=()
for program in "${missing[@]}"; do read -r -a brought <<<"${packages_of[$program]}"; packages+=("${brought[@]}"); done
as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo -n)
if command -v apt-get >/dev/null && "${as_root[@]}" true 2>/dev/null; then
    echo "test: installing ${packages[*]}"
    export DEBIAN_FRONTEND=noninteractive
    "${as_root[@]}" apt-get install -y -q --no-install-recommends "${packages[@]}" >/dev/null 2>&1 </dev/null ||
        { "${as_root[@]}" apt-get update -q >/dev/null 2>&1 </dev/null &&
          "${as_root[@]}" apt-get install -y -q --no-install-recommends "${packages[@]}" >/dev/null </dev/null; } || true
    # Debian starts RabbitMQ at once where an init runs. The tests start their own, on other ports; this one would only
    # take memory, and a port that somebody may want.
    if [[ " ${missing[*]} " == *" rabbitmq-server "* ]] && command -v systemctl >/dev/null; then
        "${as_root[@]}" systemctl disable --now rabbitmq-server >/dev/null 2>&1 || true
    fi
fi

still=()
for program in "${missing[@]}"; do
    is_there "$program" || still+=("$program")
done
[ "${#still[@]}" = 0 ] && exit 0
echo "*** NOT TESTED WITH: ${still[*]}. The tests that need them are skipped." >&2
echo "*** To have them: apt-get install ${packages[*]} (as root)" >&2
[ "${CI:-}" != true ]
