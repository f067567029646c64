"""Attacks for knowledge: of the server, of other executions, of the machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from tests.integration.attacks.inside.verdicts import Bait, Blocked, attack, first


def _every(name: str) -> dict[str, bytes]:
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/{name}", "rb") as file:
                found[pid] = file.read()
        except OSError:
            continue
    return found


@attack
def environment_of_the_server(bait: Bait) -> str:
    """From its own, its pid 1's and whatever process shows one."""
    secret = bait["environment_secret"].encode()
    seen = [f"process {pid}" for pid, text in _every("environ").items() if secret in text]
    if bait["environment_secret"] in os.environ.values():
        seen.append("its own")
    if not seen:
        raise Blocked("nobody shows it")
    return ", ".join(seen)


@attack
def arguments_of_the_host(bait: Bait) -> str:
    token = bait["victim_token"].encode()
    # Its own has the token too, for it to know what to look for.
    seen = [pid for pid, text in _every("cmdline").items() if text.rstrip(b"\0").endswith(b"\0" + token)]
    if not seen:
        raise Blocked("no process of the host shows its arguments")
    return f"process {seen[0]}"


@attack
def processes_of_the_host(bait: Bait) -> str:
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    if bait["victim"] not in pids or os.getpid() == bait["victim"]:
        raise Blocked(f"it sees {len(pids)} processes")
    return f"it sees {len(pids)} processes, {bait['victim']} among them"


@attack
def name_of_the_host(bait: Bait) -> str:
    if os.uname().nodename != bait["host_name"]:
        raise Blocked(os.uname().nodename)
    return str(bait["host_name"])


@attack
def folders_of_the_host(bait: Bait) -> str:
    """What is mounted says where it is from."""
    with open("/proc/self/mountinfo") as mounts:
        if bait["folder"] not in mounts.read():
            raise Blocked("only the view that everybody has")
    return str(bait["folder"])


@attack
def cgroup_of_the_host(bait: Bait) -> str:
    with open("/proc/self/cgroup") as lines:
        found = [line for line in lines if "sandbox-server-" in line]
    if not found:
        raise Blocked("every path is /")
    return found[0]


@attack
def files_of_the_kernel(bait: Bait) -> str:
    readable = ("/proc/kcore", "/proc/kmsg", "/dev/mem", "/dev/kmsg", "/sys/kernel", "/proc/1/map_files", "/boot")
    tries: dict[str, Callable[[], object]] = {}
    for path in readable:
        tries[path] = partial(os.open, path, os.O_RDONLY)
    tries["sysrq"] = lambda: os.open("/proc/sysrq-trigger", os.O_WRONLY)
    return first(tries)


@attack
def order_of_dying(bait: Bait) -> str:
    """Who has the highest score is killed first when the machine is out of memory."""
    with open("/proc/self/oom_score_adj") as file:
        score = int(file.read())
    if score < 900:
        return f"it is {score} from the start"
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("0")
    return "it can be set to 0"
