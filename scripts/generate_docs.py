"""Write the parts of docs/ that are facts of the code: the transition diagram, the settings, the tools, the errors.

`make docs` runs it; `--check` only compares and is what a test calls. A generated part stands between
`<!-- generated: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
from mcp import Client, StdioServerParameters

from sandbox_adapters.limits import BUILT_IN_CEILING, BUILT_IN_DEFAULTS
from sandbox_adapters.settings import Settings, variable_name
from sandbox_core.domain import errors
from sandbox_core.domain.outcome import STATUS_OF_REASON
from sandbox_core.domain.status import TRANSITIONS

DOCS = Path(__file__).resolve().parent.parent / "docs"
SANDBOX = Path(sys.executable).with_name("sandbox")
BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def transitions() -> str:
    """The transition table as a Mermaid state diagram, then the reasons of each final status."""
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> pending"]
    lines += [f"    {start} --> {end}" for start, ends in TRANSITIONS.items() for end in sorted(ends)]
    lines += [f"    {status} --> [*]" for status in TRANSITIONS if status.is_terminal]
    lines += ["```", "", "| termination reason | status |", "| --- | --- |"]
    lines += [f"| `{reason}` | `{status}` |" for reason, status in STATUS_OF_REASON.items()]
    return "\n".join(lines)


def attacks() -> str:
    """The table of attacks that tests/integration/attacks tries."""
    sys.path.insert(0, str(DOCS.parent))
    from tests.integration.attacks.table import markdown

    return markdown()


def settings() -> str:
    """Every setting: variable, meaning, default."""
    lines = ["| variable | meaning | default |", "| --- | --- | --- |"]
    # What others bring in comes after what Settings says itself.
    for name in sorted(Settings.model_fields, key=lambda name: name not in Settings.__annotations__):
        field = Settings.model_fields[name]
        default = field.get_default(call_default_factory=True, validated_data={})
        lines.append(f"| `{variable_name(name)}` | {field.description} | {_default(default)} |")
    return "\n".join(lines)


def limits() -> str:
    """The built-in defaults and ceiling of every limit."""
    defaults, ceiling = BUILT_IN_DEFAULTS["resource_limits"], BUILT_IN_CEILING["resource_limits"]
    lines = ["| limit | default | ceiling |", "| --- | --- | --- |"]
    for name in dict.fromkeys((*defaults, *ceiling)):
        top = "`SANDBOX_TIMEOUT`" if name == "timeout_seconds" else ceiling.get(name, "none")
        lines.append(f"| `{name}` | {defaults.get(name, 'none')} | {top} |")
    return "\n".join(lines)


def error_codes() -> str:
    """Every error of the tree with its code and meaning."""
    lines = ["| code | meaning |", "| --- | --- |"]
    for kind in _leaves(errors.SandboxError):
        summary = (kind.__doc__ or "").strip().splitlines()[0]
        lines.append(f"| `{kind.code}` | {summary} |")
    return "\n".join(lines)


def tools() -> str:
    """Every tool as a live server lists it: description, arguments, results."""
    parts = []
    for tool in anyio.run(_list_tools):
        parts += [f"### {tool['name']}", "", tool["description"].strip(), ""]
        required, properties = tool["input"].get("required", []), tool["input"].get("properties", {})
        heading = ["| argument | type | default | meaning |", "| --- | --- | --- | --- |"]
        parts += heading if properties else ["No arguments."]
        for name, schema in properties.items():
            default = "required" if name in required else _json_default(schema)
            parts.append(f"| `{name}` | {_type(schema)} | {default} | {_cell(_meaning(schema))} |")
        results = ", ".join(f"`{name}`" for name in tool["output"].get("properties", {}))
        parts += ["", f"Result: {results}.", ""]
    return "\n".join(parts).rstrip()


BLOCKS: Mapping[str, Callable[[], str]] = {
    "transitions": transitions,
    "settings": settings,
    "attacks": attacks,
    "limits": limits,
    "errors": error_codes,
    "tools": tools,
}


async def _list_tools() -> list[dict[str, Any]]:
    server = StdioServerParameters(
        command=str(SANDBOX), args=["serve", "--transport", "stdio"], env={"SANDBOX_LOG_FILE": ""}
    )
    async with Client(server) as client:
        listed = await client.list_tools()
    return [
        {"name": tool.name, "description": tool.description, "input": tool.input_schema, "output": tool.output_schema}
        for tool in listed.tools
    ]


def _leaves(kind: type[errors.SandboxError]) -> Iterator[type[errors.SandboxError]]:
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from (_leaves(below) if below in {errors.CallerError, errors.InfrastructureError} else [below])


def _default(value: object) -> str:
    if value is None:
        return "unset"
    if value in ((), {}, ""):
        return "empty"
    if isinstance(value, tuple):
        return f"`{','.join(map(str, value))}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _json_default(schema: Mapping[str, Any]) -> str:
    default = schema.get("default")
    return "none" if default is None else f"`{json.dumps(default)}`"


def _type(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(part) for part in schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "object"))


def _meaning(schema: Mapping[str, Any]) -> str:
    """Return the description, or those of the types that it may have, joined."""
    return " ".join(part.get("description", "") for part in (schema, *schema.get("anyOf", ()))).strip()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def rendered(text: str) -> str:
    """Return a document with every generated part made anew. Raises KeyError for a part that nobody generates."""
    return BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}\n{found[3]}", text)


def main() -> int:
    """Write what changed, or with `--check` say what would."""
    stale = []
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        fresh = rendered(text)
        if fresh != text:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(fresh, encoding="utf-8")
    print(f"generated anew: {', '.join(stale) or 'nothing'}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
