"""The fenced blocks of a document and the markers in front of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
_BLOCK = re.compile(
    r"(?:<!-- (?P<marker>(?:test|file): [^>]+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: the marker in front of it ("" when there is none), its language and its text."""

    marker: str
    language: str
    text: str


def blocks(name: str) -> list[Block]:
    """Return every fenced block of a document of the repository."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return [Block(found["marker"] or "", found["language"], found["text"]) for found in _BLOCK.finditer(text)]


def block(name: str, marker: str) -> str:
    """Return the text of the one block with this marker."""
    (found,) = [item.text for item in blocks(name) if item.marker == marker]
    return found
