"""The arguments of every tool: their types, bounds, defaults and the words that models read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from sandbox_adapters.policy_input import whole_float
from sandbox_core.application.service import LARGEST_PAGE
from sandbox_core.domain.command import (
    MAX_COMMAND_BYTES,
    MAX_STDIN_BYTES,
    MAX_VARIABLES,
    MAX_WORKING_DIRECTORY_BYTES,
)
from sandbox_core.domain.labels import MAX_LABELS
from sandbox_core.domain.policy import LARGEST_LIMIT
from sandbox_core.domain.status import ExecutionStatus

DEFAULT_RESULT_BYTES = 128 * 1024
LARGEST_RESULT_BYTES = 8 * 1024 * 1024
LONGEST_WAIT_SECONDS = 3600.0
_MAX_INPUT_TEXT = (MAX_STDIN_BYTES + 2) // 3 * 4
"""Characters of MAX_STDIN_BYTES in base64."""


def _whole_characters(value: str) -> str:
    """Refuse what JSON can write and UTF-8 cannot: half a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("string_unicode", "must be text") from None
    return value


def _few_variables(value: Any) -> Any:
    """Refuse so many that listing what is wrong with each would take seconds."""
    if isinstance(value, dict) and len(value) > MAX_VARIABLES:
        problem = f"has {len(value)} variables; at most {MAX_VARIABLES} are taken"
        raise PydanticCustomError("too_many_variables", "{problem}", {"problem": problem})
    return value


Text = Annotated[str, Field(strict=True), AfterValidator(_whole_characters)]
Flag = Annotated[bool, Field(strict=True)]
WHOLE_FLOAT = BeforeValidator(whole_float)
Seconds = Annotated[float, Field(strict=True, allow_inf_nan=False)]

ExecutionIdText = Annotated[Text, Field(min_length=1, max_length=128, description="Id that execute_code returned.")]
SessionText = Annotated[
    Text, Field(min_length=1, max_length=128, description="Your name for a group of executions: A-Z a-z 0-9 . _ : -")
]
KeyText = Annotated[
    Text,
    Field(
        min_length=1,
        max_length=128,
        description="Your name for this request: sent again with it, the request returns the same execution instead of "
        "starting another. A-Z a-z 0-9 . _ : -",
    ),
]
MaxBytes = Annotated[
    int,
    Field(
        strict=True,
        ge=1,
        le=LARGEST_RESULT_BYTES,
        description="Most output in the reply, bytes. What is left out can be read on.",
    ),
    WHOLE_FLOAT,
]
WithEvents = Annotated[Flag, Field(description="Also return the output as events in `output`.")]


class Arguments(BaseModel):
    """Base of all: unknown names are refused.

    An argument that takes one of two types has a description in each of them, not beside them: some models'
    interfaces refuse a schema that has anything beside `anyOf`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ExecuteAsyncArguments(Arguments):
    """execute_code_async: start and return at once."""

    command: (
        Annotated[Text, Field(description=f"Shell text, at most {MAX_COMMAND_BYTES} B.")]
        # A request holds millions of wrong items, and each that is told takes a kilobyte of memory.
        | Annotated[
            list[Text],
            Field(min_length=1, fail_fast=True, description="Or a program and its arguments, without a shell."),
        ]
    )
    timeout_seconds: Annotated[
        Seconds | None,
        Field(gt=0, le=LARGEST_LIMIT, description="End the program after so long, seconds."),
    ] = None
    interactive: Annotated[Flag, Field(description="Keep stdin open for send_stdin.")] = False
    working_directory: Annotated[
        Text | None,
        Field(
            min_length=1,
            max_length=MAX_WORKING_DIRECTORY_BYTES,
            description="Start directory; default the private, empty workspace.",
        ),
    ] = None
    environment: Annotated[
        dict[Text, Text] | None,
        BeforeValidator(_few_variables),
        Field(description="Variables added to the small default environment, name to text."),
    ] = None
    sandbox_config: Annotated[dict[str, Any] | None, Field()] = None
    stdin: Annotated[
        Text | None, Field(max_length=MAX_STDIN_BYTES, description="Text for standard input, at most 1 MiB.")
    ] = None
    session_id: SessionText | None = None
    idempotency_key: KeyText | None = None
    retry_safe: Annotated[
        Flag,
        Field(description="Running it twice does no harm: run it again (3 times at most) if its machine dies."),
    ] = False
    labels: Annotated[
        list[Text],
        Field(
            max_length=MAX_LABELS, description="Run only where all of these are offered, e.g. gpu. Default: anywhere."
        ),
    ] = []


class ExecuteArguments(ExecuteAsyncArguments):
    """execute_code: start and, unless told otherwise, wait."""

    wait_for_completion: Annotated[Flag, Field(description="false: return at once, like execute_code_async.")] = True
    yield_seconds: Annotated[
        Seconds | None,
        Field(
            gt=0,
            le=LONGEST_WAIT_SECONDS,
            description="Answer after so long with what there is; the program runs on (status running).",
        ),
    ] = None
    max_bytes: MaxBytes | None = None
    include_events: WithEvents = False
    on_disconnect: Annotated[
        Literal["cancel", "detach"] | None,
        Field(
            description="When this call is cancelled or its connection closes: end the program, or let it run on "
            "(default with idempotency_key)."
        ),
    ] = None


class OutputArguments(Arguments):
    """get_execution_output: a page of the log, from a cursor on."""

    execution_id: ExecutionIdText
    wait: Annotated[Flag, Field(description="Wait for the end of the execution first.")] = False
    last_event_id: Annotated[
        Text | None,
        Field(max_length=64, description="Read on after this: the last_event_id of the reply before. Default: all."),
    ] = None
    wait_seconds: Annotated[
        Seconds | None,
        Field(
            ge=0,
            le=LONGEST_WAIT_SECONDS,
            description="Wait at most so long: for the end with wait=true, else for anything new.",
        ),
    ] = None
    max_bytes: MaxBytes | None = None
    include_events: WithEvents = True
    include_text: Annotated[Flag, Field(description="false: leave the output out of the text content.")] = True
    encoding: Annotated[
        Literal["text", "base64"], Field(description="base64 returns bytes that are not UTF-8 unchanged.")
    ] = "text"


class StatusArguments(Arguments):
    """get_execution_status."""

    execution_id: ExecutionIdText


class ListArguments(Arguments):
    """list_executions: filters and paging."""

    status: (
        Annotated[ExecutionStatus, Field(description="Only this status.")]
        | Annotated[
            list[ExecutionStatus],
            Field(min_length=1, max_length=len(ExecutionStatus), description="Or only these statuses."),
        ]
        | None
    ) = None
    session_id: SessionText | None = None
    limit: Annotated[
        int, Field(strict=True, ge=1, le=LARGEST_PAGE, description="Most entries in the reply."), WHOLE_FLOAT
    ] = 50
    before: Annotated[
        Text | None, Field(min_length=1, max_length=128, description="next_before of the reply before.")
    ] = None


class SendStdinArguments(Arguments):
    """send_stdin."""

    execution_id: ExecutionIdText
    input_data: Annotated[
        Text,
        Field(max_length=_MAX_INPUT_TEXT, description="Text to send; a newline is added unless it ends with one."),
    ]
    end: Annotated[
        Flag, Field(description="Close stdin after this (the program reads end of file). May go with an empty text.")
    ] = False
    encoding: Annotated[
        Literal["text", "base64"], Field(description="base64: input_data is bytes, sent unchanged, no newline added.")
    ] = "text"


class CapabilitiesArguments(Arguments):
    """get_capabilities takes none."""


class CancelArguments(Arguments):
    """cancel_execution."""

    execution_id: ExecutionIdText
    force: Annotated[Flag, Field(description="Kill at once instead of asking first (SIGTERM, then SIGKILL).")] = False
