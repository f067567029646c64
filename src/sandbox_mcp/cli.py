"""The command line: `sandbox serve`, `worker`, `workers`, `run`, `doctor`, `version`, and `srt-mcp-server`.

What a command needs is imported when it runs, so that `sandbox run` never waits for a server's libraries.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from sandbox_core.domain.errors import CallerError, PolicyRefused, SandboxError

EXIT_USAGE = 2
EXIT_NOT_RUN = 125
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="sandbox",
    help="Run code that nobody has read yet: isolated, limited, with its output as it comes.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # as markup, `[the workspace]` is a tag that is left out, and tables cut names
)
guide_app = typer.Typer(
    name="srt-mcp-server", add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)


class Transport(StrEnum):
    """How MCP clients reach the server."""

    HTTP = "http"
    STDIO = "stdio"


class RunnerName(StrEnum):
    """The runners that can be chosen."""

    BUBBLEWRAP = "bubblewrap"
    LOCAL = "local"


Runner = Annotated[RunnerName | None, typer.Option(help="local isolates nothing. [SANDBOX_RUNNER, bubblewrap]")]
LogFile = Annotated[str | None, typer.Option(help='Log file; "" for none. [SANDBOX_LOG_FILE, sandbox_server.log]')]
LogLevel = Annotated[str | None, typer.Option(help="Least level that is logged. [SANDBOX_LOG_LEVEL, INFO]")]


@app.command()
@guide_app.command()
def serve(
    context: typer.Context,
    transport: Annotated[Transport, typer.Option(help="http at /mcp, or stdio for one client.")] = Transport.HTTP,
    host: Annotated[str | None, typer.Option(help="Address to bind. [SANDBOX_HOST, 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one. [SANDBOX_PORT, 8080]")] = None,
    token: Annotated[
        str | None,
        typer.Option(
            help="Bearer token that clients must send. Every user of this machine can read it in the process list: "
            "prefer SANDBOX_AUTH_TOKEN or --auth-tokens-file."
        ),
    ] = None,
    auth_tokens_file: Annotated[
        Path | None, typer.Option(help="JSON file, principal name to token. [SANDBOX_AUTH_TOKENS_FILE]")
    ] = None,
    allow_unauthenticated: Annotated[
        bool | None,
        typer.Option("--allow-unauthenticated", help="Serve an address that others reach without a token."),
    ] = None,
    max_concurrent: Annotated[int | None, typer.Option(help="Executions at once. [SANDBOX_MAX_CONCURRENT, 10]")] = None,
    max_per_session: Annotated[
        int | None, typer.Option(help="Executions at once in one session. [SANDBOX_MAX_PER_SESSION, 5]")
    ] = None,
    max_per_principal: Annotated[
        int | None, typer.Option(help="Executions at once of one principal. [SANDBOX_MAX_PER_PRINCIPAL, a fair share]")
    ] = None,
    max_queued: Annotated[int | None, typer.Option(help="Executions that may wait. [SANDBOX_MAX_QUEUED, 100]")] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Largest timeout of an execution, seconds. [SANDBOX_TIMEOUT, 300]")
    ] = None,
    runner: Runner = None,
    local_runner: Annotated[
        bool | None,
        typer.Option(
            "--local-runner/--no-local-runner",
            help="Run executions here, or leave all to the workers of SANDBOX_QUEUE_URL. [SANDBOX_LOCAL_RUNNER, true]",
        ),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="What the runner here offers, e.g. gpu; may be repeated. [SANDBOX_LABELS]")
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="Host header to accept; may be repeated. [SANDBOX_ALLOWED_HOSTS]")
    ] = None,
    allowed_origin: Annotated[
        list[str] | None, typer.Option(help="Origin header to accept; may be repeated. [SANDBOX_ALLOWED_ORIGINS]")
    ] = None,
    log_file: LogFile = None,
    log_level: LogLevel = None,
) -> None:
    """Serve MCP clients. Flags win over the environment; docs/configuration.md has every variable."""
    from sandbox_mcp.cli_serve import run_server

    given: dict[str, Any] = {
        "host": host,
        "port": port,
        "auth_token": token,
        "auth_tokens_file": auth_tokens_file,
        "allow_unauthenticated": allow_unauthenticated,
        "max_concurrent": max_concurrent,
        "max_per_session": max_per_session,
        "max_per_principal": max_per_principal,
        "max_queued": max_queued,
        "timeout": timeout,
        "runner": None if runner is None else runner.value,
        "local_runner": local_runner,
        "labels": label,
        "allowed_hosts": allowed_host,
        "allowed_origins": allowed_origin,
        "log_file": log_file,
        "log_level": log_level,
        "guide_replies": True if context.obj == "guide" else None,
    }
    flags = {name: value for name, value in given.items() if value not in (None, [])}
    raise typer.Exit(run_server(transport.value, flags))


@app.command()
def workers(
    json_output: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
) -> None:
    """List who runs executions for the servers at REDIS_URL. With load, labels, and when they were last heard of."""
    from sandbox_mcp.cli_workers import show_workers

    raise typer.Exit(show_workers(json_output=json_output))


@app.command()
def worker(
    concurrency: Annotated[int | None, typer.Option(help="Executions at once. [SANDBOX_MAX_CONCURRENT, 10]")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port of /health on loopback; 0 takes a free one. [SANDBOX_WORKER_PORT, 8090]")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="What is offered here, e.g. gpu; may be repeated. [SANDBOX_LABELS]")
    ] = None,
    runner: Runner = None,
    log_file: LogFile = None,
    log_level: LogLevel = None,
) -> None:
    """Run what servers put into the queue at SANDBOX_QUEUE_URL. SIGTERM drains; a second one hurries."""
    from sandbox_mcp.cli_serve import run_worker

    given: dict[str, Any] = {
        "max_concurrent": concurrency,
        "worker_port": port,
        "labels": label,
        "runner": None if runner is None else runner.value,
        "log_file": log_file,
        "log_level": log_level,
    }
    raise typer.Exit(run_worker({name: value for name, value in given.items() if value not in (None, [])}))


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    command: Annotated[list[str] | None, typer.Argument(metavar="-- CMD [ARG]...", show_default=False)] = None,
    shell: Annotated[str | None, typer.Option("-c", metavar="TEXT", help="Run this text in a shell instead.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Wall time, seconds. [60]")] = None,
    idle_timeout: Annotated[float | None, typer.Option(help="End it after so long without output, seconds.")] = None,
    queue_timeout: Annotated[float | None, typer.Option(help="Give up when it waited so long, seconds. [300]")] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", metavar="NAME[=VALUE]", help="Set a variable; without a value, pass yours."),
    ] = None,
    workdir: Annotated[str | None, typer.Option("--workdir", "-w", help="Where it starts. [the workspace]")] = None,
    memory: Annotated[int | None, typer.Option(help="Memory, MiB. [2048]")] = None,
    cpu_seconds: Annotated[int | None, typer.Option(help="CPU time of all its processes, seconds.")] = None,
    processes: Annotated[int | None, typer.Option(help="Processes and threads at once. [512]")] = None,
    open_files: Annotated[int | None, typer.Option(help="Open files of each process. [1024]")] = None,
    file_size: Annotated[int | None, typer.Option(help="Size of one written file, MiB.")] = None,
    workspace: Annotated[int | None, typer.Option(help="Size of the workspace, MiB. [256]")] = None,
    max_output: Annotated[
        int | None,
        typer.Option(help="Output passed on, bytes; the middle of more is dropped. [the ceiling's, 256 MiB]"),
    ] = None,
    allow_read: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="Host path it may read; repeatable.")
    ] = None,
    allow_write: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="Path it may write; repeatable.")
    ] = None,
    deny_write: Annotated[list[str] | None, typer.Option(metavar="PATH", help="Path it may not write.")] = None,
    deny_read: Annotated[list[str] | None, typer.Option(metavar="PATH", help="Path it may not read.")] = None,
    allow_domain: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Name it may reach.")] = None,
    deny_domain: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Name it may not reach.")] = None,
    require_layer: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER", help="Refuse to run without it, e.g. seccomp. `sandbox doctor` names them."),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(metavar="FILE|JSON", help="A policy in the shape of sandbox_config; options add to it."),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Run only where this is offered: here, SANDBOX_LABELS; repeatable.")
    ] = None,
    runner: Runner = None,
    server: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Run it on this server, with the token in SANDBOX_AUTH_TOKEN. [here]"),
    ] = None,
    no_stdin: Annotated[bool, typer.Option("--no-stdin", "-n", help="Give it no input.")] = False,
    retry_safe: Annotated[
        bool, typer.Option("--retry-safe", help="Running it twice does no harm: run it again if its worker dies.")
    ] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Sent again with this key, the same request starts nothing anew.")
    ] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="Print the events as lines of JSON.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say on standard error what it used and what isolated it.")
    ] = False,
) -> None:
    """Run one command under the same policy as a server's. Here, without a server, or on one with --server.

    Exits with the command's code (128 + number for a signal); 124 when its time ran out, 130 when interrupted,
    125 when it was refused, never started or could not be set up, 123 when it was lost after its start, 2 for wrong
    arguments or settings.
    """
    from sandbox_mcp.cli_policy import RunOptions, policy_from_options
    from sandbox_mcp.cli_run import run_command

    options = RunOptions(
        policy=policy,
        limits={
            "timeout_seconds": timeout,
            "idle_timeout_seconds": idle_timeout,
            "queue_timeout_seconds": queue_timeout,
            "max_memory_mb": memory,
            "max_cpu_seconds": cpu_seconds,
            "max_processes": processes,
            "max_open_files": open_files,
            "max_file_size_mb": file_size,
            "workspace_mb": workspace,
            "max_output_bytes": max_output,
        },
        lists={
            "filesystem": {
                "allow_read": allow_read,
                "allow_write": allow_write,
                "deny_write": deny_write,
                "deny_read": deny_read,
            },
            "network": {"allowed_domains": allow_domain, "denied_domains": deny_domain},
            "isolation": {"require": require_layer},
        },
    )
    raise typer.Exit(
        run_command(
            argv=command or [],
            shell=shell,
            policy=policy_from_options(options),
            environment=env or [],
            working_directory=workdir,
            labels=label or [],
            runner=None if runner is None else runner.value,
            pass_stdin=not no_stdin,
            json_lines=json_lines,
            verbose=verbose,
            retry_safe=retry_safe,
            idempotency_key=idempotency_key,
            server=server,
        )
    )


@app.command()
def doctor(
    json_output: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    runner: Annotated[
        RunnerName | None, typer.Option(help="The runner that has to work. [SANDBOX_RUNNER, bubblewrap]")
    ] = None,
) -> None:
    """Show what this machine can enforce, and how to mend the rest. Exits 1 when the runner cannot work."""
    from sandbox_mcp.cli_doctor import examine

    raise typer.Exit(examine(json_output=json_output, runner=None if runner is None else runner.value))


@app.command()
def version() -> None:
    """Print the version."""
    _print_version(True)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version as version_of

        typer.echo(version_of("sandbox-mcp"))
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of `sandbox`."""
    sys.exit(_exit_code(lambda: app(sys.argv[1:] or ["--help"], prog_name="sandbox", standalone_mode=False)))


def guide_server_main() -> None:
    """Entry point of `srt-mcp-server`: `sandbox serve`, with replies in the shape of the guide's server."""
    sys.exit(_exit_code(lambda: guide_app(prog_name="srt-mcp-server", standalone_mode=False, obj="guide")))


def _exit_code(command: Callable[[], Any]) -> int:
    _open_standard_streams()
    # Who started us may ignore it, and then the kernel keeps no exit code of any child for us (wait(2)).
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        code = command()
    except typer.TyperException as error:
        return _report(error.format_message() or "wrong usage; see --help", EXIT_USAGE)
    except PolicyRefused as error:
        return _report(str(error), EXIT_NOT_RUN)
    except CallerError as error:
        return _report(str(error), EXIT_USAGE)
    except SandboxError as error:
        return _report(str(error), EXIT_NOT_RUN)
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    return code if isinstance(code, int) else 0


def _open_standard_streams() -> None:
    """Give closed standard streams /dev/null, lest a descriptor that we open later is taken for one of them."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(descriptor, "w" if descriptor else "r", closefd=False))


def _report(message: str, code: int) -> int:
    line = " ".join(message.split())
    typer.echo(f"sandbox: {line}", err=True)
    return code
