"""Why a request went no further. Raised inside the proxy; each way in turns them into its own kind of answer.

EgressFailure
├── Refused           a rule said no
├── MalformedRequest  the request cannot be understood, or could be understood in two ways
└── Unreachable       the destination is allowed and did not answer
"""

from __future__ import annotations

from enum import Enum

from sandbox_adapters.egress.rules import Decision


class EgressFailure(Exception):
    """Root of the tree."""


class Refused(EgressFailure):
    """A rule refused `decision.host` and `decision.port`."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(f"{decision.host}:{decision.port} refused by {decision.rule}: {decision.reason}")
        self.decision = decision


class MalformedRequest(EgressFailure):
    """The request is answered with `status`; `problem` says what is wrong, without repeating the request."""

    def __init__(self, problem: str, *, status: int = 400) -> None:
        super().__init__(problem)
        self.problem = problem
        self.status = status


class Trouble(Enum):
    """What kept a destination from answering."""

    NAME = "the name could not be resolved"
    REFUSED = "nothing there took the connection"
    TIMEOUT = "it did not answer in time"
    CERTIFICATE = "the proxy, which ends TLS for it, could not verify who answered"
    PROTOCOL = "its answer could not be understood"
    INJECTION = "a header field that the operator adds for it is not valid"


class Unreachable(EgressFailure):
    """The destination did not answer, for `trouble`."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.value)
        self.trouble = trouble
