"""The container: which adapter stands behind which port. The only place, beside tests, that names concrete adapters.

It only wires. Contexts are entered, and left, by `open_sandbox`.
"""

from __future__ import annotations

import socket
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dependency_injector import containers, providers

from sandbox_adapters.auth_tokens import load_auth_tokens
from sandbox_adapters.capabilities import capabilities_of
from sandbox_adapters.clock import SystemClock
from sandbox_adapters.control.local import LocalControlChannel
from sandbox_adapters.fleet.local import LocalFleet
from sandbox_adapters.heartbeat import OwnBack
from sandbox_adapters.limits import Limits, limits_in_force
from sandbox_adapters.metrics.counts import Counts, RoundTrips
from sandbox_adapters.metrics.store import CountingStateStore
from sandbox_adapters.policy_input import build_policy, normalise_policy
from sandbox_adapters.queues.local import LocalQueue
from sandbox_adapters.secrets_file import load_secrets
from sandbox_adapters.settings import Settings, SettingsError
from sandbox_adapters.stores.memory import MemoryStateStore
from sandbox_core.application.admission import share_of_one
from sandbox_core.application.remote import Back, RemoteBack
from sandbox_core.application.run import RunConfig
from sandbox_core.application.service import ExecutionService
from sandbox_core.application.supervisor import ExecutionSupervisor, SupervisorConfig
from sandbox_core.domain.ids import NodeId, new_node_id
from sandbox_core.domain.policy import ExecutionPolicy
from sandbox_core.ports.clock import Clock
from sandbox_core.ports.control import ControlChannel
from sandbox_core.ports.fleet import Fleet
from sandbox_core.ports.queue import ExecutionQueue
from sandbox_core.ports.runner import ProcessRunner
from sandbox_core.ports.store import Quota, StateStore

if TYPE_CHECKING:
    from sandbox_adapters.message_log import MessageLog
    from sandbox_adapters.metrics.exposition import Metrics
    from sandbox_adapters.queue_engines import EngineConnection
    from sandbox_adapters.redis_connection import RedisConnection
    from sandbox_adapters.runners.network import Egress

ISOLATING_RUNNERS = frozenset({"bubblewrap"})
"""Names of the runners that put something between the code and the server."""


EVERY_PLACE = 100_000
"""Places of the only principal of a fleet whose size no process knows."""


@dataclass(frozen=True, slots=True)
class Shares:
    """How places and waiting room are shared among the principals that can exist."""

    quota: Quota
    queued_per_principal: int


def shares_of(settings: Settings) -> Shares:
    """Return the counts that hold for these settings and the principals that they know.

    Raises SettingsError when the token file cannot be used.
    """
    principals = max(1, len(load_auth_tokens(settings)))
    per_principal = settings.max_per_principal or share_of_one(settings.max_concurrent, principals)
    if settings.max_per_principal is None and principals == 1 and settings.queue_url is not None:
        per_principal = EVERY_PLACE
    return Shares(
        quota=Quota(
            per_node=settings.max_concurrent, per_principal=per_principal, per_session=settings.max_per_session
        ),
        queued_per_principal=share_of_one(settings.max_queued, principals),
    )


def node_here() -> NodeId:
    """Return a fresh node id that begins with this machine's name."""
    return new_node_id(socket.gethostname())


def bubblewrap_runner(settings: Settings) -> ProcessRunner:
    """Return the default runner. Imported here, since a program with a runner of its own does not need it."""
    from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
    from sandbox_adapters.visible_paths import visible_paths

    operator = build_policy(normalise_policy(settings.ceiling)).filesystem
    return BubblewrapRunner(
        bwrap_path=settings.bwrap_path,
        read_only_paths=visible_paths(settings),
        operator=operator,
        spares=settings.spares,
        egress=egress_of(settings),
    )


def egress_of(settings: Settings) -> Egress:
    """Return the way out for executions that are granted names."""
    from sandbox_adapters.egress import AddressPolicy, is_own_address
    from sandbox_adapters.runners.network import Egress

    return Egress(
        ports=frozenset(settings.egress_ports),
        addresses=AddressPolicy(
            also_refused=settings.egress_refused_networks,
            also_reachable=settings.egress_private_networks,
            is_own=is_own_address,
        ),
        hosts=settings.egress_hosts,
        executions=settings.max_concurrent,
        secrets=load_secrets(settings),
    )


def worker_runner(runner: ProcessRunner, ceiling: ExecutionPolicy) -> ProcessRunner:
    """Return the runner of what other servers accepted."""
    from sandbox_adapters.runners.ceiling import CeilingRunner

    return CeilingRunner(runner, ceiling)


def remote_runner() -> ProcessRunner:
    """Return what stands for the runner where nothing runs."""
    from sandbox_adapters.runners.remote import RemoteRunner

    return RemoteRunner()


def local_runner(settings: Settings) -> ProcessRunner:
    """Return the runner that isolates nothing, and so takes no secrets: raises SettingsError."""
    from sandbox_adapters.runners.local import LocalRunner

    load_secrets(settings)
    return LocalRunner()


def redis_connection(settings: Settings) -> RedisConnection:
    """Return the way to Redis that the settings name. Imported here, since most programs keep their state in memory."""
    from sandbox_adapters.redis_connection import RedisConnection, RedisOptions

    if settings.redis_url is None:
        raise SettingsError("SANDBOX_STATE is redis, and REDIS_URL is not set.")
    return RedisConnection(
        RedisOptions(
            url=settings.redis_url,
            prefix=settings.redis_prefix,
            hash_tag=settings.redis_hash_tag,
            timeout_seconds=settings.redis_timeout_seconds,
            max_connections=settings.redis_max_connections,
            sentinels=settings.redis_sentinels,
            sentinel_service=settings.redis_sentinel_service,
            sentinel_password=settings.redis_sentinel_password,
        )
    )


def redis_store(settings: Settings, connection: RedisConnection, clock: Clock) -> StateStore:
    """Return the store over a connection."""
    from sandbox_adapters.stores.redis import RedisStateStore

    starts_here = settings.queue_url is None
    return RedisStateStore(connection, clock, ttl_seconds=settings.ttl_seconds, starts_here=starts_here)


def redis_control(connection: RedisConnection, node: NodeId, store: StateStore) -> ControlChannel:
    """Return the control channel over a connection."""
    from sandbox_adapters.control.redis import RedisControlChannel, node_in

    return RedisControlChannel(connection=connection, node=node, locate=node_in(store))


def message_log(settings: Settings, connection: RedisConnection) -> MessageLog:
    """Return where the streams of older clients are kept."""
    from sandbox_adapters.message_log import MessageLog

    return MessageLog(connection, ttl_seconds=settings.ttl_seconds)


def metrics_of(
    counts: Counts,
    queue: ExecutionQueue,
    back: Back,
    service: ExecutionService,
    clock: Clock,
    state: object,
    of_queue: object,
) -> Metrics:
    """Return what tells the counts. Raises SettingsError where prometheus-client is not installed."""
    try:
        from sandbox_adapters.metrics.exposition import Metrics
    except ImportError:
        raise SettingsError("SANDBOX_METRICS needs prometheus-client: pip install 'sandbox-mcp[metrics]'") from None
    named = {"state": state} if of_queue is state else {"state": state, "queue": of_queue}
    connections = {name: connection for name, connection in named.items() if isinstance(connection, RoundTrips)}
    return Metrics(counts=counts, queue=queue, back=back, service=service, clock=clock, connections=connections)


def queue_kind(settings: Settings) -> str:
    """Return where pending executions wait: here, here with replicas that take over, or where all workers take them."""
    if settings.queue_url is not None:
        return "workers"
    return "replica" if settings.shares_state else "memory"


def queue_connection(settings: Settings, state: RedisConnection) -> EngineConnection:
    """Return the way to the queue: the one to the state when nothing else is named."""
    if settings.queue_url is None:
        return state
    from sandbox_adapters.queue_engines import engine_connection

    return engine_connection(settings, state)


def workers_queue(
    settings: Settings,
    shares: Shares,
    connection: EngineConnection,
    store: StateStore,
    state: RedisConnection,
    clock: Clock,
) -> ExecutionQueue:
    """Return the queue of fronts and backs in different processes."""
    from sandbox_adapters.queue_engines import engine_queue
    from sandbox_adapters.queues.adopting import AdoptingQueue

    queue = engine_queue(settings, connection, state, shares.queued_per_principal)
    return AdoptingQueue(queue=queue, store=store, state=state, clock=clock, lease_seconds=settings.lease_seconds)


def redis_queue(
    settings: Settings, local: LocalQueue, store: StateStore, connection: RedisConnection, clock: Clock
) -> ExecutionQueue:
    """Return the queue of one replica among several."""
    from sandbox_adapters.queues.shared import SharedQueue

    return SharedQueue(
        local=local,
        store=store,
        connection=connection,
        clock=clock,
        lease_seconds=settings.lease_seconds,
        offers=settings.offers,
    )


def redis_fleet(connection: RedisConnection) -> Fleet:
    """Return where the backs of all processes are known."""
    from sandbox_adapters.fleet.redis import RedisFleet

    return RedisFleet(connection)


def own_back(settings: Settings, node: NodeId, back: Back, service: ExecutionService, clock: Clock) -> OwnBack:
    """Return what others are told of the back of this process."""
    return OwnBack(
        node=node,
        back=back,
        is_draining=lambda: service.draining,
        clock=clock,
        host=socket.gethostname(),
        labels=settings.offers,
        queue=settings.queue_engine or "local",
    )


class SandboxContainer(containers.DeclarativeContainer):
    """Every object of one sandbox, made once. `limits` and what needs it come after the runner was entered."""

    settings = providers.Dependency(instance_of=Settings)

    clock = providers.Singleton(SystemClock)
    node = providers.Singleton(node_here)
    shares = providers.Singleton(shares_of, settings)

    connection = providers.Selector(
        settings.provided.state,
        memory=providers.Singleton(nullcontext),
        redis=providers.Singleton(redis_connection, settings),
    )
    store = providers.Selector(
        settings.provided.state,
        redis=providers.Singleton(redis_store, settings, connection, clock),
        memory=providers.Singleton(
            MemoryStateStore,
            clock,
            ttl_seconds=settings.provided.ttl_seconds,
            max_retained=settings.provided.max_retained,
            max_retained_mb=settings.provided.max_retained_mb,
        ),
    )
    counts = providers.Singleton(Counts)
    counting_store = providers.Singleton(CountingStateStore, store, counts)
    counted_store = providers.Selector(settings.provided.metrics, off=store, token=counting_store, open=counting_store)
    local_queue = providers.Singleton(
        LocalQueue,
        max_depth=settings.provided.max_queued,
        max_per_principal=shares.provided.queued_per_principal,
        clock=clock,
    )
    queue_connection = providers.Singleton(queue_connection, settings, connection)
    queue = providers.Selector(
        providers.Callable(queue_kind, settings),
        memory=local_queue,
        workers=providers.Singleton(workers_queue, settings, shares, queue_connection, store, connection, clock),
        replica=providers.Singleton(redis_queue, settings, local_queue, store, connection, clock),
    )
    control = providers.Selector(
        settings.provided.state,
        memory=providers.Singleton(LocalControlChannel),
        redis=providers.Singleton(redis_control, connection, node, store),
    )
    fleet = providers.Selector(
        settings.provided.state,
        memory=providers.Singleton(LocalFleet, settings.provided.offers),
        redis=providers.Singleton(redis_fleet, connection),
    )
    messages = providers.Selector(
        settings.provided.state,
        memory=providers.Object(None),
        redis=providers.Singleton(message_log, settings, connection),
    )
    own_runner = providers.Selector(
        settings.provided.runner,
        bubblewrap=providers.Singleton(bubblewrap_runner, settings),
        local=providers.Singleton(local_runner, settings),
    )
    runner = providers.Selector(settings.provided.place, here=own_runner, elsewhere=providers.Singleton(remote_runner))

    limits: providers.Provider[Limits] = providers.Singleton(limits_in_force, settings, runner.provided.unenforceable)
    capabilities = providers.Singleton(capabilities_of, runner, limits, settings.provided.offers)
    service = providers.Singleton(
        ExecutionService,
        store=counted_store,
        queue=queue,
        control=control,
        clock=clock,
        ceiling=limits.provided.ceiling,
        defaults=limits.provided.defaults,
        screen=runner.provided.unenforceable,
        fleet=fleet,
    )
    own_supervisor = providers.Singleton(
        ExecutionSupervisor,
        store=counted_store,
        queue=queue,
        control=control,
        runner=providers.Selector(
            providers.Callable(queue_kind, settings),
            memory=runner,
            replica=runner,
            workers=providers.Singleton(worker_runner, runner, limits.provided.ceiling),
        ),
        clock=clock,
        node=node,
        quota=shares.provided.quota,
        labels=settings.provided.offers,
        config=providers.Singleton(
            SupervisorConfig,
            lease_seconds=settings.provided.lease_seconds,
            run=providers.Singleton(RunConfig, kill_grace_seconds=settings.provided.kill_grace_seconds),
        ),
    )
    supervisor = providers.Selector(
        settings.provided.place,
        here=own_supervisor,
        elsewhere=providers.Singleton(
            RemoteBack,
            store=counted_store,
            queue=queue,
            clock=clock,
            node=node,
            lease_seconds=settings.provided.lease_seconds,
        ),
    )
    own_metrics = providers.Singleton(
        metrics_of, counts, queue, supervisor, service, clock, connection, queue_connection
    )
    metrics = providers.Selector(
        settings.provided.metrics, off=providers.Object(None), token=own_metrics, open=own_metrics
    )
    own_back = providers.Singleton(own_back, settings, node, supervisor, service, clock)
