"""How long `execute_code("true")` takes over HTTP, beside bare bwrap: p50 of 200 each, taken in turn."""

from __future__ import annotations

import sys

from benchmarks.report import Row, main, median, milliseconds, time_bare_bwrap, time_true
from examples.serving import serve

ROUNDS = 200
WARM_UP = 20
TARGET = 2.5


async def measure() -> list[Row]:
    """Take both in turn, so that a noisy moment hits both."""
    subject, baseline = [], []
    async with serve() as server, server.client() as client:
        for _ in range(WARM_UP):
            await time_true(client)
            time_bare_bwrap()
        for _ in range(ROUNDS):
            baseline.append(time_bare_bwrap())
            subject.append(await time_true(client))
    ours, bare = median(subject), median(baseline)
    return [
        Row(
            f'`execute_code("true")` over HTTP, p50 of {ROUNDS}',
            f"{milliseconds(ours)} ({ours / bare:.2f} x)",
            f"bare bwrap {milliseconds(bare)}",
            f"at most {TARGET} x",
            ours <= TARGET * bare,
        )
    ]


if __name__ == "__main__":
    sys.exit(main(measure))
