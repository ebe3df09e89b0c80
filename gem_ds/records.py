"""Decoding one raw record of a corpus, or saying why that cannot be done.

Where records come from is `sources`' business, what becomes of them `documents`'.
"""

import json
from dataclasses import dataclass
from typing import Any

MAX_RECORD = 1 << 28  # bytes; a longer record is skipped
OFFSET_BITS = 44  # of a record's id, so a file may have 16 TiB; others number the inputs
EMPTY = "empty text"
TOO_LONG = f"longer than {MAX_RECORD >> 20} MiB"
NOT_UTF8 = "invalid UTF-8"
NOT_JSON = "invalid JSON"
NOT_OBJECT = "not a JSON object"
NO_FIELD = "missing field"
NOT_TEXT = "not a string"
NOT_MESSAGES = "not a list of chat messages"
SURROGATE = "lone surrogate"
BAD = frozenset(
    {TOO_LONG, NOT_UTF8, NOT_JSON, NOT_OBJECT, NO_FIELD, NOT_TEXT, NOT_MESSAGES, SURROGATE}
)


class Skip(Exception):  # noqa: N818 - not an error: the record is counted and left out
    """A record that yields nothing. The message is the reason, the same for all of its kind."""


def record_id(number: int, offset: int) -> int:
    """What a shard calls a record: its input's number in the plan, and where it begins there."""
    return number << OFFSET_BITS | offset


def place_of(record: int) -> tuple[int, int]:
    """(number of the input, offset in it) of a record's id: bytes, or rows where it has rows."""
    return record >> OFFSET_BITS, record & ((1 << OFFSET_BITS) - 1)


@dataclass
class Record:
    """One raw record.

    `part` is the place of its part in the unit, `line` its line in the part (1-based; in tables,
    its row in the input), `ordinal` how many records of the part come before it. `item` is bytes (a
    JSON line or a text), a dict by column, or None (longer than `MAX_RECORD`).
    """

    id: int
    part: int
    line: int
    ordinal: int
    is_json: bool
    item: Any

    def value(self, field: str) -> Any:
        """The value of a field; raises `Skip`. A plain text has one, whatever it is called."""
        if self.item is None:
            raise Skip(TOO_LONG)
        if self.is_json and isinstance(self.item, bytes):
            self.item = _json_object(self.item)
        value = self.item.get(field) if isinstance(self.item, dict) else self.item
        if value is None:
            raise Skip(NO_FIELD)
        return value

    def text(self, field: str) -> str:
        """The text of a field; raises `Skip`."""
        value = self.value(field)
        if isinstance(value, bytes):
            value = _utf8(value)
        if not isinstance(value, str):
            raise Skip(NOT_TEXT)
        if not value or value.isspace():
            raise Skip(EMPTY)
        return encodable(value)

    def messages(self, field: str) -> list[dict[str, Any]]:
        """The chat messages of a field, as objects or as JSON text; raises `Skip`.

        Only a message with tool calls needs no content. What is null is left out, as Transformers
        does: tables write a null for whatever a message lacks and another has.
        """
        value = self.value(field)
        if isinstance(value, str | bytes):
            try:
                value = json.loads(_utf8(value) if isinstance(value, bytes) else value)
            except (ValueError, RecursionError):
                raise Skip(NOT_MESSAGES) from None
        if not isinstance(value, list) or not value:
            raise Skip(NOT_MESSAGES)
        if not all(isinstance(message, dict) for message in value):
            raise Skip(NOT_MESSAGES)
        messages = [{key: x for key, x in m.items() if x is not None} for m in value]
        for message in messages:
            content = message.get("content", "" if message.get("tool_calls") else None)
            if not isinstance(content, str):
                raise Skip(NOT_MESSAGES)
        return messages


def encodable(text: str) -> str:
    """The text; raises `Skip` if it cannot be written in UTF-8."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Skip(SURROGATE) from None
    return text


def _utf8(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Skip(NOT_UTF8) from None


def _json_object(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(_utf8(raw))
    except (ValueError, RecursionError):
        raise Skip(NOT_JSON) from None
    if not isinstance(value, dict):
        raise Skip(NOT_OBJECT)
    return value
