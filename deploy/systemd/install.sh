#!/bin/sh
# Sandbox under systemd: run as root from the root of the source. Run again, it updates and leaves /etc/sandbox as it is.
set -eu
umask 022
id sandbox >/dev/null 2>&1 || useradd --system --no-create-home --shell /usr/sbin/nologin sandbox
python3 -m venv /opt/sandbox
/opt/sandbox/bin/pip install --require-hashes -r requirements/runtime.txt
/opt/sandbox/bin/pip install --no-deps --force-reinstall .
mkdir -p /etc/sandbox
for name in sandbox worker; do
    test -e /etc/sandbox/$name.env || install -m 600 deploy/systemd/$name.env.example /etc/sandbox/$name.env
done
install -m 644 deploy/systemd/*.service /etc/systemd/system/
systemctl daemon-reload
