"""Decoding one raw record of a corpus, or saying why that cannot be done.

Where records come from is `sources`' business, what becomes of them `documents`'.
"""

import json
from dataclasses import dataclass
from typing import Any

MAX_RECORD = 1 << 28  # bytes; a longer record is skipped
EMPTY = "empty text"
TOO_LONG = f"longer than {MAX_RECORD >> 20} MiB"
NOT_UTF8 = "invalid UTF-8"
NOT_JSON = "invalid JSON"
NOT_OBJECT = "not a JSON object"
NO_FIELD = "missing field"
NOT_TEXT = "not a string"
SURROGATE = "lone surrogate"
BAD = frozenset({TOO_LONG, NOT_UTF8, NOT_JSON, NOT_OBJECT, NO_FIELD, NOT_TEXT, SURROGATE})


class Skip(Exception):  # noqa: N818 - not an error: the record is counted and left out
    """A record that yields nothing. The message is the reason, the same for all of its kind."""


@dataclass
class Record:
    """One raw record and where it came from; for `item`, see `sources.Block`."""

    file: str
    line: int
    ordinal: int
    is_json: bool
    item: Any

    def text(self, field: str) -> str:
        """The text of a field; raises `Skip`. A plain text has one, whatever it is called."""
        if self.item is None:
            raise Skip(TOO_LONG)
        if self.is_json and isinstance(self.item, bytes):
            self.item = _json_object(self.item)
        value = self.item.get(field) if isinstance(self.item, dict) else self.item
        if value is None:
            raise Skip(NO_FIELD)
        if isinstance(value, bytes):
            value = _utf8(value)
        if not isinstance(value, str):
            raise Skip(NOT_TEXT)
        if not value or value.isspace():
            raise Skip(EMPTY)
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise Skip(SURROGATE) from None
        return value


def _utf8(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Skip(NOT_UTF8) from None


def _json_object(raw: bytes) -> dict[str, Any]:
    if not raw or raw.isspace():
        raise Skip(EMPTY)
    try:
        value = json.loads(_utf8(raw))
    except (ValueError, RecursionError):
        raise Skip(NOT_JSON) from None
    if not isinstance(value, dict):
        raise Skip(NOT_OBJECT)
    return value
