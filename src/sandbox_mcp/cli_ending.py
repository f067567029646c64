"""What `sandbox run` says of an end, to people: refusals, usage, isolation."""

from __future__ import annotations

from sandbox_core.domain.execution import Execution
from sandbox_core.domain.isolation import Isolation
from sandbox_core.domain.outcome import Outcome, ResourceUsage
from sandbox_mcp.denials import denial_words, others_words, reason_words
from sandbox_mcp.words import duration_words

SHOWN_DENIALS = 10

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def ending_notices(execution: Execution, *, verbose: bool) -> list[str]:
    """Return the lines: one for each of the first refusals; with `verbose` also the usage and the isolation."""
    lines = [] if execution.outcome is None else _denials(execution.outcome)
    if verbose and execution.outcome is not None:
        lines.append(f"used {usage_words(execution.outcome.usage)}")
    if verbose and execution.isolation is not None:
        lines.append(f"isolated by {isolation_words(execution.isolation)}")
    return lines


def usage_words(usage: ResourceUsage) -> str:
    """Return everything that was measured."""
    parts = [f"{_seconds(usage.wall_seconds)} wall"]
    for name, seconds in (("user", usage.user_cpu_seconds), ("system", usage.system_cpu_seconds)):
        if seconds is not None:
            parts.append(f"{_seconds(seconds)} {name} CPU")
    if usage.peak_memory_bytes is not None:
        parts.append(f"{_bytes(usage.peak_memory_bytes)} memory at most")
    if usage.max_rss_bytes is not None:
        parts.append(f"{_bytes(usage.max_rss_bytes)} in the largest process")
    if usage.peak_processes is not None:
        parts.append(f"{usage.peak_processes} processes at most")
    parts.append(f"printed {_bytes(usage.stdout_bytes)} and {_bytes(usage.stderr_bytes)} of errors")
    if usage.dropped_bytes:
        parts.append(f"of which {_bytes(usage.dropped_bytes)} were dropped")
    if usage.network_sent_bytes is not None:
        parts.append(f"sent {_bytes(usage.network_sent_bytes)}")
    if usage.network_received_bytes is not None:
        parts.append(f"received {_bytes(usage.network_received_bytes)}")
    parts.append(f"queued {_seconds(usage.queued_seconds)}, set up in {_seconds(usage.setup_seconds)}")
    return ", ".join(parts)


def isolation_words(isolation: Isolation) -> str:
    """Return the runner, the network mode, the layers, and what they are exactly."""
    if not isolation.isolated:
        return f"nothing ({isolation.runner} {isolation.version})"
    layers = ", ".join(isolation.layers) or "no layer"
    facts = "".join(f"; {name} {value}" for name, value in isolation.facts.items())
    return f"{isolation.runner} {isolation.version}; network {isolation.network}; layers {layers}{facts}"


def _denials(outcome: Outcome) -> list[str]:
    lines = [f"refused {denial_words(denial)}: {reason_words(denial)}" for denial in outcome.denials[:SHOWN_DENIALS]]
    more = others_words(outcome, SHOWN_DENIALS)
    return [*lines, f"refused {more}"] if more else lines


def _seconds(seconds: float) -> str:
    return duration_words(seconds * 1000)


def _bytes(count: int) -> str:
    step = min(max(count.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    return f"{count} B" if not step else f"{count / 1024**step:.1f} {_UNITS[step]}"
