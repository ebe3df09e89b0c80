"""Decoding one raw record of a corpus, or saying why that cannot be done.

`corpus.record_reader` reads records, `documents` uses them.
"""

import difflib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from gem_ds.errors import InputError

MAX_RECORD = 1 << 28  # bytes; a longer record is skipped
OFFSET_BITS = 44  # of a record's id, so a file may have 16 TiB; others number the inputs
EMPTY = "empty text"
TOO_LONG = f"longer than {MAX_RECORD >> 20} MiB"
NOT_UTF8 = "invalid UTF-8"
NOT_JSON = "invalid JSON"
NOT_OBJECT = "not a JSON object"
NOT_CSV = "invalid CSV: wrong quotes, or not as many cells as the first line"
NO_FIELD = "missing field"
NOT_TEXT = "not a string"
NOT_MESSAGES = "not a list of chat messages"
SURROGATE = "lone surrogate"
BAD = (
    *(TOO_LONG, NOT_UTF8, NOT_JSON, NOT_OBJECT, NOT_CSV, NO_FIELD, NOT_TEXT, NOT_MESSAGES),
    SURROGATE,
)
# Who speaks in ShareGPT's messages, as roles of chat templates.
SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bard", "bing", "assistant", "model", "bot"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    "system": "system",
}
NEGATIVES = ("neg", "negatives", "negative", "negative_passages", "hard_negatives")
NAME_IT = (
    "name the right one (--field, --text-field, --context-field, --answer-field, --messages-field)"
)
NEAR = 0.75  # as `difflib` counts: txt is near text, context is not
SHOWN = 12  # names of fields in a message


class Skip(Exception):  # noqa: N818 - not an error: the record is counted and left out
    """A record that yields nothing. The message is the reason, the same for all of its kind.

    `hint` says more of this one, for people.
    """

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint

    @property
    def told(self) -> str:
        """Reason and hint."""
        return f"{self} ({self.hint})" if self.hint else str(self)


def is_bad(reason: str) -> bool:
    """Whether a record that was left out for a reason could not be decoded."""
    return reason.startswith(BAD)


def names_there(asked: str, there: Collection[str]) -> str:
    """The names of fields that there are, and the one that may be meant, for people."""
    shown = ", ".join(list(map(str, there))[:SHOWN]) + (", …" if len(there) > SHOWN else "")
    near = difflib.get_close_matches(asked, list(map(str, there)), 1, NEAR)
    return (shown or "none") + (f"; did you mean {near[0]}?" if near else "")


def check_columns(path: str, columns: Sequence[str], there: Sequence[str]) -> None:
    """Raise `InputError` for a table without one of the columns, or with two of that name."""
    for column in columns:
        if column not in there:
            raise InputError(
                f"{path} has no column {column!r} but {names_there(column, there)}; {NAME_IT}"
            )
        if there.count(column) > 1:
            raise InputError(f"{path} has two columns {column!r}; rename one of them")


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
    its row in the input), `ordinal` how many records of the part come before it. `item` is bytes
    (JSON or a text), a dict by column, None (longer than `MAX_RECORD`), or why there is none.
    """

    id: int
    part: int
    line: int
    ordinal: int
    is_json: bool
    item: Any

    def decoded(self) -> dict[str, Any] | bytes:
        """All fields, or of a plain text its bytes; raises `Skip`."""
        if self.item is None:
            raise Skip(TOO_LONG)
        if isinstance(self.item, Skip):
            raise self.item
        if self.is_json and isinstance(self.item, bytes):
            self.item = _json_object(self.item)
        item: dict[str, Any] | bytes = self.item
        return item

    def value(self, field: str) -> Any:
        """The value of a field; raises `Skip`. A plain text has one, whatever it is called."""
        item = self.decoded()
        if not isinstance(item, dict):
            return item
        value = item.get(field)
        if value is None:
            hint = f"it has {names_there(field, item)}; {NAME_IT}"
            if field in item:
                hint = "it is null"
            raise Skip(f"{NO_FIELD} {field!r}", hint)
        return value

    def text(self, field: str) -> str:
        """The text of a field; raises `Skip`."""
        text = _string(self.value(field), field)
        if is_blank(text):
            raise Skip(EMPTY)
        return text

    def pair(self, context_field: str, answer_field: str) -> tuple[str, list[str]]:
        """The text of a context and those of its answers; raises `Skip`.

        A list of answers, such as a query's positives, gives a text each, "" for an empty one. A
        text may also be a passage, which is an object with ``text`` and perhaps ``title``, or a
        list of an instruction and a text.
        """
        asked, value = self.value(context_field), self.value(answer_field)
        context = _passage(asked, context_field)
        if isinstance(asked, list) and isinstance(value, list) and isinstance(value[0], str):
            raise Skip(NOT_TEXT, f"{answer_field} should be a list of instructions with texts")
        answers = value if isinstance(value, list) else [value]
        texts = ["" if one is None else _passage(one, answer_field) for one in answers]
        if not context or not any(texts):
            raise Skip(EMPTY)
        return context, texts

    @property
    def has_negatives(self) -> bool:
        """Whether a record that was decoded has negatives, which no kind of document uses."""
        return isinstance(self.item, dict) and any(self.item.get(name) for name in NEGATIVES)

    def messages(self, field: str) -> list[dict[str, Any]]:
        """The chat messages of a field, as objects or as JSON text; raises `Skip`.

        ShareGPT's ``from`` and ``value`` become ``role`` and ``content``. Only a message with tool
        calls needs no content. What is null is left out, as Transformers does: tables write a null
        for whatever a message lacks and another has.
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
        messages = [
            _as_role({key: x for key, x in message.items() if x is not None}) for message in value
        ]
        for message in messages:
            content = message.get("content", "" if message.get("tool_calls") else None)
            if not isinstance(content, str) or not isinstance(message.get("role"), str):
                keys = ", ".join(map(str, message)) or "nothing"
                raise Skip(
                    NOT_MESSAGES,
                    f"each needs role and content, or from and value, as texts; one has {keys}",
                )
        return messages


def _as_role(message: dict[str, Any]) -> dict[str, Any]:
    """A message with ``role`` and ``content``; raises `Skip` for a speaker that is not known."""
    if "role" in message or "from" not in message:
        return message
    rest = {key: value for key, value in message.items() if key not in ("from", "value")}
    speaker = message["from"]
    if not isinstance(speaker, str) or speaker.lower() not in SPEAKERS:
        raise Skip(NOT_MESSAGES, f"from is {speaker!r}, not one of {', '.join(SPEAKERS)}")
    said = {"content": message["value"]} if "value" in message else {}
    return {"role": SPEAKERS[speaker.lower()], **said, **rest}


def encodable(text: str) -> str:
    """The text; raises `Skip` if it cannot be written in UTF-8."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Skip(SURROGATE) from None
    return text


def _string(value: Any, field: str) -> str:
    if isinstance(value, bytes):
        value = _utf8(value)
    if not isinstance(value, str):
        raise Skip(NOT_TEXT, f"{field} is of type {type(value).__name__}")
    return encodable(value)


def _passage(value: Any, field: str) -> str:
    """The text of a value, of a passage, or of an instruction and a text; "" if it is blank."""
    between = "\n" if isinstance(value, list) else " "
    parts = value if isinstance(value, list) and len(value) == 2 else [value]
    if isinstance(value, dict):
        parts = [value.get("title") or "", value.get("text")]
    texts = [_string(part, field) for part in parts]
    if len(texts) == 1:
        return "" if is_blank(texts[0]) else texts[0]
    return between.join(text.strip() for text in texts if not is_blank(text))


def is_blank(text: str | bytes | None) -> bool:
    """Whether a text or a line is there, but holds nothing but white space."""
    return text is not None and (not text or text.isspace())


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
