"""Makes h11 take time in proportion to what it is sent, also where that was written to take long.

h11 0.16 matches a header line and the line before a chunk by expressions in which one run of blanks belongs to either
of two parts. A line that does not match costs the square of its blanks: 60 KB of them, and one control character,
kept an event loop for 17 seconds. And it makes objects of every field, of thousands in one head or trailer, before
anybody can count them. Neither can be told from outside, since a body may be anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from h11 import _readers
from h11._readers import _decode_header_lines as _decode_all
from h11._util import LocalProtocolError

MOST_LINES = 256
"""Of the fields of one head or trailer."""

_TOKEN = rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]+"
_VISIBLE = rb"[^\x00\s]+"
HEADER_FIELD = re.compile(
    rb"(?P<field_name>%b):[ \t]*+(?P<field_value>(?:%b(?:[ \t]+%b)*)?)[ \t]*+" % (_TOKEN, _VISIBLE, _VISIBLE)
)
"""RFC 9112, section 5, as h11 reads it; the blanks before a value are never shared out anew."""
CHUNK_HEADER = re.compile(rb"(?P<chunk_size>[0-9A-Fa-f]{1,20})(?P<chunk_ext>;[^\r\n]*+)?[ \t]*+\r\n")
"""RFC 9112, section 7.1, with blanks at its end, which h11 allows."""


def decode_header_lines(lines: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Return names and values of the fields. Raises h11's error, which is its peer's, for more than MOST_LINES."""
    if isinstance(lines, Sequence) and len(lines) > MOST_LINES:
        raise LocalProtocolError(f"more than {MOST_LINES} lines of fields")
    return iter(_decode_all(lines))


def bound_h11() -> None:
    """Put these in the place of h11's own, for the whole process. Again is no error."""
    for name, better in (
        ("header_field_re", HEADER_FIELD),
        ("chunk_header_re", CHUNK_HEADER),
        ("_decode_header_lines", decode_header_lines),
    ):
        setattr(_readers, name, better)
