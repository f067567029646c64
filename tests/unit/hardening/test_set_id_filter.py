"""The filter of set-user-ID bits, run as the kernel would run it, for both processors."""

from __future__ import annotations

import os

import pytest

from sandbox_adapters.runners.hardening import seccomp
from sandbox_adapters.runners.hardening.set_id_filter import build_filter
from sandbox_adapters.runners.hardening.syscall_numbers import NUMBERS
from tests.unit.hardening import cbpf
from tests.unit.hardening.filter_model import ALLOW, ENOSYS, EPERM

MACHINES = sorted(seccomp.MACHINES)
GARBAGE = 0xFFFFFFFF << 32


def answer(machine: str, name: str, *arguments: int, value: int | None = None) -> int | None:
    """Return what the filter says to a call; None when the machine has no such call."""
    if name not in NUMBERS[machine]:
        return None
    value = seccomp.MACHINES[machine] if value is None else value
    return cbpf.run(build_filter(machine), machine=value, number=NUMBERS[machine][name], arguments=arguments)[0]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("bits", [0o4000, 0o2000, 0o6755, 0o104755])
def test_no_call_sets_the_bits(machine: str, bits: int) -> None:
    for high in (0, GARBAGE):
        mode = bits | high
        for name in ("chmod", "fchmod", "creat", "mknod"):
            assert answer(machine, name, 3, mode) in (EPERM, None)
        for name in ("fchmodat", "fchmodat2", "mknodat"):
            assert answer(machine, name, 3, 0, mode) == EPERM
        for flags in (os.O_CREAT, os.O_CREAT | os.O_EXCL | os.O_RDWR, os.O_TMPFILE | os.O_RDWR):
            assert answer(machine, "open", 0, flags | high, mode) in (EPERM, None)
            assert answer(machine, "openat", 3, 0, flags | high, mode) == EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_everything_else_is_left_to_the_sandboxs_own_filter(machine: str) -> None:
    assert answer(machine, "fchmod", 3, 0o1777) == ALLOW
    assert answer(machine, "fchmodat", 3, 0, 0o755) == ALLOW
    assert answer(machine, "openat", 3, 0, os.O_CREAT, 0o644) == ALLOW
    assert answer(machine, "openat", 3, 0, os.O_RDONLY | os.O_DIRECTORY, 0o6777) == ALLOW
    assert answer(machine, "openat2", 3, 0, 0, 24) == ENOSYS
    assert answer(machine, "ptrace", 0o6000, 0o6000, 0o6000, 0o6000) == ALLOW
    assert answer(machine, "fchmod", 3, 0o4755, value=0x40000003) == ALLOW


def test_machine_without_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="riscv64"):
        build_filter("riscv64")
