"""What a sandbox that is granted names reaches, and what it never does."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_address

import anyio
import pytest

from sandbox_adapters.egress import AddressPolicy, is_own_address
from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.network import Egress
from sandbox_core.domain.command import Command
from sandbox_core.domain.denial import DenialKind
from sandbox_core.domain.errors import LaunchFailed, PolicyRefused
from sandbox_core.domain.policy import ExecutionPolicy, FilesystemPolicy, NetworkPolicy
from sandbox_core.ports.runner import Stream
from sandbox_core.testing.runner_harness import finish, launch_of, read_until
from tests.integration.egress.conftest import BOUND_SECONDS, Certificate, lookup
from tests.integration.egress.origins import Origin
from tests.integration.egress.sandboxes import ADDRESSES, denied, reaching, run_in, runner_for

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

NO_NETWORK = ExecutionPolicy()
ASK = """
import socket, sys
def ask(address):
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        try:
            sock.connect(address)
        except OSError as error:
            print(address[0], "errno", error.errno)
        else:
            print(address[0], "connected")
"""
ROUTES = f"""{ASK}
for host in sys.argv[2:]:
    ask((host, int(sys.argv[1])))
try:
    socket.getaddrinfo("origin.test", 80)
except OSError as error:
    print("resolver", error.errno)
query = bytes.fromhex("000101000001000000000000") + b"\\6origin\\4test\\0" + bytes.fromhex("00010001")
for host in ("1.1.1.1", "127.0.0.53"):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.2)
        try:
            sock.sendto(query, (host, 53))
            sock.recv(100)
            print(host, "answered")
        except OSError as error:
            print(host, type(error).__name__)
print(open("/proc/net/route").read().count("\\n"), open("/proc/net/dev").read().count(":"))
"""


@pytest.fixture
async def runner(origin: Origin, tls_origin: Origin) -> AsyncIterator[BubblewrapRunner]:
    async with runner_for(origin.port, tls_origin.port) as opened:
        yield opened


async def test_an_allowed_name_is_reached_and_counted(
    runner: BubblewrapRunner, origin: Origin, tls_origin: Origin, certificate: Certificate
) -> None:
    script = f"curl -sS http://origin.test:{origin.port}/ https://origin.test:{tls_origin.port}/"
    finished = await run_in(runner, script, reaching("origin.test"), certificate=certificate)
    assert finished.stdout == b"hellohello", finished.stderr
    assert len(origin.seen) == len(tls_origin.seen) == 1
    assert finished.exit.denials == ()
    assert finished.exit.network_sent_bytes is not None
    assert finished.exit.network_sent_bytes > 200
    assert finished.exit.network_received_bytes is not None
    assert finished.exit.network_received_bytes > 200


async def test_what_is_refused_comes_back_with_the_rule_that_refused_it(
    runner: BubblewrapRunner, origin: Origin, tls_origin: Origin, certificate: Certificate
) -> None:
    tls = f"origin.test:{tls_origin.port}"
    script = f"""
        for url in http://other.example:{origin.port} http://no.origin.test:{origin.port} http://origin.test:1 \\
                http://inside.test:{origin.port} http://metadata.test:{origin.port} http://nat64.test:{origin.port} \\
                http://127.0.0.1:{origin.port} http://[::1]:{origin.port} http://nowhere.test:{origin.port}
        do curl -sS -o /dev/null --noproxy '' $url; done
        curl -sS --connect-to other.test:{tls_origin.port}:{tls} https://other.test:{tls_origin.port}
        curl -sS --noproxy '' http://other.example:{origin.port}
        true"""
    policy = reaching("*.test", denied=["no.origin.test"])
    finished = await run_in(runner, script, policy, certificate=certificate)
    assert denied(finished) == [
        (f"other.example:{origin.port}", "network.allowed_domains"),
        (f"no.origin.test:{origin.port}", "network.denied_domains"),
        ("origin.test:1", "network.ports"),
        (f"inside.test:{origin.port}", "network.addresses"),
        (f"metadata.test:{origin.port}", "network.addresses"),
        (f"nat64.test:{origin.port}", "network.addresses"),
        (f"127.0.0.1:{origin.port}", "network.allowed_domains"),
        (f"[::1]:{origin.port}", "network.allowed_domains"),
        (tls, "network.tls_server_name"),
    ]
    first = finished.exit.denials[0]
    assert (first.kind, first.count) == (DenialKind.NETWORK, 2)
    assert first.message == f"other.example:{origin.port} was refused: no entry covers this name."
    assert finished.exit.denials_omitted == 0
    assert not origin.seen
    assert not tls_origin.seen


async def test_there_is_no_route_and_no_resolver_inside(runner: BubblewrapRunner, origin: Origin) -> None:
    hosts = ("127.0.0.1", "::1", "1.1.1.1", "10.0.0.1", "169.254.169.254", "2606:4700::1111")
    script = f"python3 - {origin.port} {' '.join(hosts)} <<'END'\n{ROUTES}\nEND"
    finished = await run_in(runner, script, reaching("origin.test"))
    lines = finished.stdout.decode().splitlines()
    assert [line.rsplit(" ", 1)[0] for line in lines[:6]] == [f"{host} errno" for host in hosts], finished.stderr
    assert lines[6:] == ["resolver -2", "1.1.1.1 OSError", "127.0.0.53 TimeoutError", "1 1"]
    assert not origin.seen


async def test_the_record_says_that_there_is_a_proxy_and_where(runner: BubblewrapRunner, origin: Origin) -> None:
    async with runner.start(launch_of(Command(argv=("true",)), reaching("origin.test"))) as process:
        record = process.isolation
        await process.wait()
    assert record.network == "egress"
    assert str(origin.port) in record.facts["egress_ports"].split(", ")
    assert record.facts["egress_proxy"].endswith("127.0.0.1:3128")
    async with runner.start(launch_of(Command(argv=("true",)))) as process:
        exit_ = await process.wait()
        assert process.isolation.network == "none"
        assert "egress_ports" not in process.isolation.facts
    assert exit_.network_sent_bytes is None


async def test_without_a_grant_there_is_no_listener_and_no_variable(runner: BubblewrapRunner) -> None:
    finished = await run_in(runner, "env | grep -ci proxy; wc -l < /proc/net/tcp", NO_NETWORK)
    assert finished.stdout.split() == [b"0", b"1"]


async def test_a_command_may_point_its_programs_elsewhere_and_gains_nothing(
    runner: BubblewrapRunner, origin: Origin
) -> None:
    script = (
        f"curl -sS --noproxy '*' http://origin.test:{origin.port}; curl -sS -x http://127.0.0.1:{origin.port} http://a/"
    )
    finished = await run_in(runner, script, reaching("origin.test"))
    assert b"Could not resolve host" in finished.stderr
    assert b"Failed to connect to 127.0.0.1" in finished.stderr
    assert not origin.seen


async def test_two_executions_at_once_have_a_proxy_each(runner: BubblewrapRunner, origin: Origin) -> None:
    url = f"http://origin.test:{origin.port}/"
    ask = Command(shell=f"read go; curl -s -o /dev/null -w '%{{http_code}}' {url}", interactive=True)
    with anyio.fail_after(BOUND_SECONDS):
        async with (
            runner.start(launch_of(ask, reaching("origin.test"))) as one,
            runner.start(launch_of(ask, reaching("other.test"))) as other,
        ):
            for process in (one, other):
                await process.send_stdin(b"go\n")
            first, second = await finish(one), await finish(other)
    assert (first.stdout, second.stdout) == (b"200", b"403")
    assert first.exit.denials == ()
    assert denied(second) == [(f"origin.test:{origin.port}", "network.allowed_domains")]
    assert second.exit.network_received_bytes == 0


async def test_the_address_of_this_machine_is_refused_also_when_it_looks_public(origin: Origin) -> None:
    policy = AddressPolicy(is_own=lambda address: address == ip_address("8.8.8.8"))
    egress = Egress(ports=frozenset({origin.port}), addresses=policy, hosts={"here.test": [ip_address("8.8.8.8")]})
    async with BubblewrapRunner(spares=0, egress=egress) as runner:
        finished = await run_in(runner, f"curl -sS http://here.test:{origin.port}", reaching("here.test"))
    assert denied(finished) == [(f"here.test:{origin.port}", "network.addresses")]
    assert "an address of this machine" in finished.exit.denials[0].message


@pytest.mark.parametrize(
    ("network", "field"),
    [
        (NetworkPolicy(allowed_domains=("*.*.example.com",)), "network.allowed_domains"),
        (NetworkPolicy(allowed_domains=("https://example.com",)), "network.allowed_domains"),
        (NetworkPolicy(allowed_domains=("0x7f.1",)), "network.allowed_domains"),
        (NetworkPolicy(allowed_domains=("*.127.0.0.1",)), "network.allowed_domains"),
        (NetworkPolicy(allowed_domains=("example.com",), denied_domains=("a b",)), "network.denied_domains"),
    ],
)
async def test_an_entry_that_can_never_match_is_refused_by_name(
    runner: BubblewrapRunner, network: NetworkPolicy, field: str
) -> None:
    policy = ExecutionPolicy(network=network)
    assert [violation.field for violation in runner.unenforceable(policy)] == [field]
    with pytest.raises(PolicyRefused):
        async with runner.start(launch_of(Command(argv=("true",)), policy)):
            pytest.fail("it started")


async def test_more_connections_than_one_execution_may_have_wait_for_their_turn(origin: Origin) -> None:
    hold = f"""
import socket, sys
opened = []
for _ in range(12):
    opened.append(socket.create_connection(("127.0.0.1", 3128)))
place = b"origin.test:{origin.port}"
request = b"GET http://" + place + b"/ HTTP/1.1\\r\\nHost: " + place + b"\\r\\nConnection: close\\r\\n\\r\\n"
for sock in opened:
    sock.sendall(request)
print(sum(sock.recv(12) == b"HTTP/1.1 200" for sock in opened))
"""
    async with runner_for(origin.port, executions=1 << 20) as runner:
        assert runner._egress._budget.each < 12
        finished = await run_in(runner, f"python3 - <<'END'\n{hold}\nEND", reaching("origin.test"))
    assert finished.stdout == b"12\n", finished.stderr


async def test_executions_that_find_no_descriptors_left_are_refused_and_the_others_go_on(origin: Origin) -> None:
    async with runner_for(origin.port, executions=1 << 20) as runner:
        wait, policy = Command(shell="echo up; read go", interactive=True), reaching("origin.test")
        budget = runner._egress._budget
        taken = 0
        async with runner.start(launch_of(wait, policy)) as process:
            await read_until(process, Stream.STDOUT, b"up")
            while budget._free >= budget.each:
                budget.take()
                taken += 1
            with pytest.raises(LaunchFailed, match="open files"):
                async with runner.start(launch_of(wait, policy)):
                    pytest.fail("it started")
            assert (await run_in(runner, "echo fine", NO_NETWORK)).stdout == b"fine\n"
        assert taken
        assert budget.each <= budget._free < 2 * budget.each
        assert (await run_in(runner, "echo again", policy)).stdout == b"again\n"


def test_this_machines_own_addresses_are_known() -> None:
    assert is_own_address(ip_address("127.0.0.1"))
    assert not is_own_address(ip_address("192.0.2.1"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return
        assert is_own_address(ip_address(probe.getsockname()[0]))


async def test_a_grant_of_names_and_one_of_files_hold_together(origin: Origin) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        files = FilesystemPolicy(allow_write=(folder,))
        policy = replace(reaching("origin.test"), filesystem=files)
        egress = Egress(ports=frozenset({origin.port}), addresses=ADDRESSES, lookup=lambda: lookup)
        async with BubblewrapRunner(spares=0, egress=egress, operator=files) as runner:
            finished = await run_in(runner, f"curl -sSo {folder}/got http://origin.test:{origin.port}/", policy)
        assert finished.exit.exit_code == 0, finished.stderr
        assert await anyio.Path(folder, "got").read_bytes() == b"hello"
