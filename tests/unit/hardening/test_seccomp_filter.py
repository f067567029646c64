"""The system call filter answers as the model says, for every number and whatever arguments."""

from __future__ import annotations

import os
import re
import shutil
import subprocess  # noqa: TID251 - asks the compiler

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sandbox_adapters.runners.hardening import seccomp, syscall_rules
from sandbox_adapters.runners.hardening.syscall_numbers import NUMBERS
from tests.unit.hardening import cbpf
from tests.unit.hardening.filter_model import ALLOW, EACCES, EAFNOSUPPORT, ENOENT, ENOMEM, ENOSYS, EPERM, KILL, expected

MACHINES = sorted(seccomp.MACHINES)
PROGRAMS = {machine: seccomp.build_filter(machine) for machine in MACHINES}

each_machine = pytest.mark.parametrize("machine", MACHINES)
argument = st.integers(0, 2**64 - 1) | st.integers(0, 64)
interesting = st.sampled_from(
    [
        0,
        1,
        2,
        3,
        5,
        6,
        8,
        10,
        16,
        17,
        0x80,
        0x5412,
        0x541C,
        0x5423,
        0x20000,
        0x40022,
        0o4600,
        4,
        0x10000000,
        0o20000,
        0o60000,
        0o10644,
        0x80001,
        0x80802,
        0x803,
    ]
)
anything = st.builds(lambda low, high: low | high << 32, interesting, st.integers(0, 2**32 - 1)) | argument


def answer(machine: str, number: int, *arguments: int) -> int:
    return cbpf.run(PROGRAMS[machine], machine=seccomp.MACHINES[machine], number=number, arguments=arguments)[0]


def named(machine: str, name: str, *arguments: int) -> int:
    return answer(machine, NUMBERS[machine][name], *arguments)


@each_machine
def test_every_number_answers_as_the_model_says(machine: str) -> None:
    for number in [*range(2048), *range(2**30 - 4, 2**30 + 600), *range(2**31 - 4, 2**31 + 600), 2**32 - 1]:
        for value in (0, 1, 2, 2**64 - 1):
            assert answer(machine, number, *[value] * 6) == expected(machine, number, [value] * 6), (number, value)


@each_machine
@settings(max_examples=400)
@given(data=st.data(), arguments=st.lists(anything, min_size=6, max_size=6))
def test_any_arguments_answer_as_the_model_says(machine: str, data: st.DataObject, arguments: list[int]) -> None:
    checked = [NUMBERS[machine][name] for name in seccomp.CHECKS if name in NUMBERS[machine]]
    number = data.draw(st.sampled_from(checked) | st.integers(0, 2**32 - 1))
    assert answer(machine, number, *arguments) == expected(machine, number, arguments)


@each_machine
@given(value=st.integers(0, 2**32 - 1), number=st.integers(0, 2**32 - 1))
@example(value=0x40000003, number=11)
@example(value=0x40000028, number=11)
def test_another_architecture_is_killed(machine: str, value: int, number: int) -> None:
    if value != seccomp.MACHINES[machine]:
        assert cbpf.run(PROGRAMS[machine], machine=value, number=number)[0] == KILL


def test_x32_calls_are_killed_and_minus_one_is_not() -> None:
    assert answer("x86_64", 0x40000000 + 59) == KILL
    assert answer("x86_64", -1) == ENOSYS


@each_machine
@pytest.mark.parametrize("high", [0, 1 << 32, 0xFFFFFFFF << 32])
def test_high_bits_hide_no_argument(machine: str, high: int) -> None:
    assert named(machine, "ioctl", 0, 0x5412 | high) == EPERM
    assert named(machine, "ioctl", 0, 0x541C | high) == EPERM
    assert named(machine, "ioctl", 0, 0x5401 | high) == ALLOW
    assert named(machine, "setsockopt", 0, 6 | high, 31 | high) == ENOENT
    assert named(machine, "setsockopt", 0, 6 | high, 13 | high) == ALLOW
    assert named(machine, "setsockopt", 0, 17 | high, 31 | high) == ALLOW
    assert named(machine, "fcntl", 0, 1024 | high) == EACCES
    assert named(machine, "fcntl", 0, 1040 | high) == EACCES
    assert named(machine, "fcntl", 0, 1025 | high) == ALLOW
    assert named(machine, "clone", 0x10000000 | high) == EPERM
    assert named(machine, "mmap", 0, 4096, 3, 0x40022 | high) == ENOMEM
    assert named(machine, "mmap", 0, 4096, 3, 0x22 | high) == ALLOW
    assert named(machine, "memfd_create", 0, 5 | high) == ENOSYS
    assert named(machine, "memfd_create", 0, 3 | high) == ALLOW
    assert named(machine, "shmget", 0, 4096, 0o5600 | high) == EPERM
    assert named(machine, "shmget", 0, 4096, 0o1600 | high) == ALLOW
    assert named(machine, "socket", 16 | high, 3, 0) == EAFNOSUPPORT
    assert named(machine, "socket", 2 | high, 3 | high, 0) == EPERM


@each_machine
def test_threads_and_forks_pass_and_new_namespaces_do_not(machine: str) -> None:
    thread, fork, vfork = 0x3D0F00, 0x1200011, 0x4111
    assert [named(machine, "clone", flags) for flags in (thread, fork, vfork)] == [ALLOW] * 3
    for bit in (7, 17, 25, 26, 27, 28, 29, 30):
        assert named(machine, "clone", fork | 1 << bit) == EPERM


_ADMINISTRATION = """
    mount umount2 pivot_root chroot move_mount fsopen unshare setns ptrace process_vm_writev bpf perf_event_open
    init_module finit_module delete_module kexec_load kexec_file_load reboot open_by_handle_at syslog
"""
_ABSENT = "clone3 io_uring_setup io_uring_enter io_uring_register keyctl add_key request_key userfaultfd memfd_secret"


@each_machine
def test_calls_that_must_never_pass(machine: str) -> None:
    for name in _ADMINISTRATION.split():
        assert named(machine, name) == EPERM, name
    for name in _ABSENT.split():
        assert named(machine, name) == ENOSYS, name


@each_machine
def test_an_allowed_call_costs_few_instructions(machine: str) -> None:
    steps = [
        cbpf.run(PROGRAMS[machine], machine=seccomp.MACHINES[machine], number=number)[1]
        for number in NUMBERS[machine].values()
    ]
    assert max(steps) <= 20


def test_rules_do_not_contradict_each_other_and_name_real_calls() -> None:
    known = NUMBERS["x86_64"].keys() | NUMBERS["aarch64"].keys()
    rules = [syscall_rules.ALLOWED, syscall_rules.REFUSED, frozenset(seccomp.CHECKS)]
    assert sum(map(len, rules)) == len(frozenset().union(*rules))
    assert not frozenset().union(*rules) - known


@each_machine
def test_no_number_stands_for_two_calls(machine: str) -> None:
    assert len(set(NUMBERS[machine].values())) == len(NUMBERS[machine])


@each_machine
def test_filter_is_the_same_every_time(machine: str) -> None:
    again = seccomp.build_filter(machine)
    assert again == PROGRAMS[machine]
    assert re.fullmatch(r"[0-9a-f]{64}", seccomp.filter_hash(again))
    assert len({seccomp.filter_hash(program) for program in PROGRAMS.values()}) == len(PROGRAMS)


def test_machine_without_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="riscv64"):
        seccomp.build_filter("riscv64")


_AS_AARCH64 = """
#define __BITS_PER_LONG 64
#define __ARCH_WANT_RENAMEAT
#define __ARCH_WANT_NEW_STAT
#define __ARCH_WANT_SET_GET_RLIMIT
#define __ARCH_WANT_TIME32_SYSCALLS
#define __ARCH_WANT_SYS_CLONE3
#define __ARCH_WANT_MEMFD_SECRET
#define __ASM_GENERIC_BITS_PER_LONG
#include <asm-generic/unistd.h>
"""


@each_machine
def test_numbers_are_those_of_the_kernel_headers(machine: str) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    if machine == "x86_64" and os.uname().machine != "x86_64":
        pytest.skip("does not apply: this machine has other headers")
    source = "#include <asm/unistd_64.h>\n" if machine == "x86_64" else _AS_AARCH64
    done = subprocess.run(
        [compiler, "-E", "-dM", "-x", "c", "-"], input=source, capture_output=True, text=True, check=False
    )
    # asm/bitsperlong.h of the compiler's own machine is fine: both are 64-bit.
    assert done.returncode == 0, done.stderr
    defined = dict(re.findall(r"#define (__NR\w+) (\w+)", done.stdout))
    compared = 0
    for name, number in NUMBERS[machine].items():
        value = defined.get(f"__NR_{name}")
        while value in defined:
            value = defined[value]
        if value is not None:
            assert int(value) == number, name
            compared += 1
    assert compared > 250
