"""Sandbox as a library: run, stream, and talk to programs from your own application."""

from contextlib import aclosing

import anyio

from sandbox_adapters import open_sandbox


async def main() -> None:
    """Open a sandbox, use it three ways; leaving the block ends whatever still runs."""
    async with open_sandbox() as sandbox:
        result = await sandbox.run(["python3", "-c", "print(6 * 7)"], timeout_seconds=10)
        print("run:", result.text.strip(), "exit code", result.exit_code)

        async with aclosing(sandbox.stream("for i in 1 2 3; do echo step $i; done")) as events:
            async for event in events:
                print("stream:", event.kind.value, event.data.decode().strip())

        chat = await sandbox.submit("read name; echo hello $name", interactive=True)
        await sandbox.send_stdin(chat, "world\n")
        print("chat:", (await sandbox.wait(chat)).text.strip())


if __name__ == "__main__":
    anyio.run(main)
