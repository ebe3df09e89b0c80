"""JSON files that are not lines: one array of records, one object that holds such a list, or both
pretty-printed, read record by record whatever their size.

Only brackets and strings are looked at. So a record keeps its place, and one that is no JSON costs
itself, as in lines; decoding is left to `records`.
"""

import json
import re
from collections.abc import Collection, Iterator

from gem_ds.corpus.records import MAX_RECORD, is_blank
from gem_ds.corpus.streams import BOM, Raw, Stream
from gem_ds.errors import InputError

LOOKED_AT = 10  # lines
LEAST, ENOUGH, MOST = 1 << 10, 1 << 20, 1 << 26  # bytes: of what begins, of lines, of one line
AT_TOP = re.compile(rb'["\[\]{},:]')
OUTSIDE = re.compile(rb'["\[\]{},]')
DOCUMENT = re.compile(rb"\[\s*\{|\[\s*$|\{[ \t\r]*\n")  # an array of objects, or pretty-printed
INSIDE = re.compile(rb'(?:[^"\\]|\\.)*+', re.DOTALL)


def is_document(stream: Stream, is_named_so: bool) -> bool:
    """Whether a file is JSON, but not lines of it. Only its beginning is looked at.

    Lines are such that at least half of the first ones are objects. A file that is not named
    ``.json`` is a document only if it begins as an array of objects does, or a pretty-printed one.
    """
    head = bytearray()
    is_all = True

    def may_be(head: bytearray) -> bool:
        begin = bytes(head[:LEAST]).removeprefix(BOM).lstrip()
        return is_named_so or not begin or bool(DOCUMENT.match(begin))

    for chunk in stream.chunks():
        head += chunk
        n_lines = head.count(b"\n")
        is_enough = n_lines > LOOKED_AT or (len(head) > ENOUGH and n_lines > 1)
        if len(head) >= LEAST and (is_enough or len(head) > MOST or not may_be(head)):
            is_all = False
            break
    if not may_be(head):
        return False
    pieces = bytes(head).removeprefix(BOM).split(b"\n")
    lines = [line for line in (pieces if is_all else pieces[:-1]) if not is_blank(line)][:LOOKED_AT]
    if len(lines) < 2:
        return not is_blank(bytes(head).removeprefix(BOM))
    return 2 * sum(map(_is_object, lines)) < len(lines)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def records(stream: Stream, asked: Collection[str]) -> Iterator[Raw]:
    """The records of a JSON file, each as its bytes; None for one too long.

    A record is an element of an array, or of an object's one list of objects, or the object itself
    if it has one of the fields that are `asked` for, or no such list. Several values may follow one
    another. Raises `InputError` for an object with several lists of objects, `EOFError` where a
    bracket or a string does not end.
    """
    scan = _Scan(stream.path, asked)
    for chunk in stream.chunks():
        yield from scan.feed(chunk)
    yield from scan.end()


class _Scan:
    """Where a JSON file is being read.

    `depth` brackets are open; records begin where it is `level`: 0 at the top, 1 in an array, 2 in
    a list of an object. `value` is what has been read since the last record but for the chunk from
    `start` on; it begins at byte `place` of the file, in line `line`.
    """

    def __init__(self, path: str, asked: Collection[str]) -> None:
        self.path = path
        self.asked = {
            json.dumps(name, ensure_ascii=e).encode() for name in asked for e in (False, True)
        }
        self.depth = self.level = 0
        self.in_string = self.is_escaped = False
        self.value = bytearray()
        self.is_too_long = False
        self.chunk = b""
        self.before = 0  # bytes of the file before the chunk
        self.start = self.place = self.counted = 0
        self.line = self.line_at = 1
        self._begin_object()

    def _begin_object(self) -> None:
        """Of an object at the top: no key yet, no list, and so on."""
        self.string = 0  # where in the value the last string begins
        self.key = b""
        self.is_record = False
        self.list_from = -1  # where in the value the list of the last key begins
        self.list_key = b""

    def feed(self, chunk: bytes) -> Iterator[Raw]:
        """The records that end in the next chunk."""
        self.chunk, self.start, self.counted = chunk, 0, 0
        at = 0
        if not self.before and chunk.startswith(BOM):
            at = len(BOM)
            self._begin(at)
        while at < len(chunk):
            if self.in_string:
                at = self._string(at)
                continue
            pattern = OUTSIDE if self.level else AT_TOP
            found = pattern.search(chunk, at)
            if not found:
                break
            at = found.end()
            if raw := self._sign(found[0], found.start()):
                yield raw
        self._keep(len(chunk))
        self.line_at += chunk.count(b"\n", self.counted)
        self.before += len(chunk)

    def end(self) -> Iterator[Raw]:
        """What is left at the end of the file."""
        self.chunk, self.start, self.counted = b"", 0, 0
        if self.in_string or self.depth:
            what = "a string" if self.in_string else "a bracket"
            raise EOFError(f"{what} does not end")
        if raw := self._taken(0):
            yield raw

    def _string(self, at: int) -> int:
        """Where in the chunk the string under way, or the chunk, ends."""
        at += self.is_escaped
        self.is_escaped = False
        found = INSIDE.match(self.chunk, at)
        at = found.end() if found else at
        if at < len(self.chunk):
            self.in_string = self.chunk[at : at + 1] != b'"'
            self.is_escaped = self.in_string  # a backslash, the chunk's last byte
            at += 1
        return at

    def _sign(self, sign: bytes, at: int) -> Raw | None:
        """Take a sign at a place of the chunk; returns the record that it ends."""
        raw = None
        is_here = self.depth == self.level
        is_top = self.level == 0
        if sign == b'"':
            self.in_string = True
            if is_top and self.depth == 1:
                self.string = self._length(at)
        elif sign == b":" and self.depth == 1:
            self.key = self._since(self.string, at).strip()
            self.is_record |= self.key in self.asked
        elif sign in b"[{":
            if is_top and self.depth == 0:
                raw = self._taken(at)  # what is no value
                self._begin_object()
                self.level = sign == b"["
                self._begin(at + self.level)
            elif is_top and self.depth == 1 and sign == b"[":
                self.list_from = self._length(at + 1)
            elif sign == b"{" and self._is_first_of_list(at):
                self._begin_list()
                self._begin(at)
            self.depth += 1
        elif sign == b"," and is_here and not is_top:
            raw = self._taken(at) or Raw(self.line, self.place, b"")
            self._begin(at + 1)
        elif sign in b"]}":
            if is_here and not is_top:
                raw = self._taken(at)
                self._begin(at + 1)
                self.level = 0
            self.depth = max(self.depth - 1, 0)
            if self.depth == 0 and is_top:
                raw = None if self.list_key else self._taken(at + 1)
                self._begin(at + 1)
        return raw

    def _is_first_of_list(self, at: int) -> bool:
        """Whether the object that begins here makes the list around it one of records."""
        in_list = self.level == 0 and self.depth == 2 and self.list_from >= 0
        return in_list and not self.is_record and not self._since(self.list_from, at).strip()

    def _begin_list(self) -> None:
        if self.list_key:
            one, other = (key.decode(errors="replace") for key in (self.list_key, self.key))
            raise InputError(
                f"{self.path} has several lists of objects, {one} and {other}; write each to a "
                "file of its own"
            )
        self.level, self.list_key = 2, self.key

    def _begin(self, at: int) -> None:
        """Begin a value at a place of the chunk."""
        self.value.clear()
        self.is_too_long = False
        self.start = at
        self.line_at += self.chunk.count(b"\n", self.counted, at)
        self.counted = at
        self.line, self.place = self.line_at, self.before + at
        self.list_from = -1

    def _keep(self, end: int) -> None:
        """Keep the chunk up to `end` as a part of the value."""
        if self._length(end) > MAX_RECORD:
            self.is_too_long = True
            self.value.clear()
        elif not self.is_too_long:
            self.value += self.chunk[self.start : end]
        self.start = end

    def _length(self, at: int) -> int:
        """How long the value is up to a place of the chunk."""
        return len(self.value) + at - self.start

    def _since(self, begin: int, at: int) -> bytes:
        """The value from `begin` up to a place of the chunk."""
        if begin >= len(self.value):
            return self.chunk[self.start + begin - len(self.value) : at]
        return bytes(self.value[begin:]) + self.chunk[self.start : at]

    def _taken(self, end: int) -> Raw | None:
        """The value that ends at a place of the chunk, if there is one."""
        self._keep(end)
        if self.is_too_long:
            return Raw(self.line, self.place, None)
        content = bytes(self.value).lstrip()
        blank = self.value[: len(self.value) - len(content)]
        if not content:
            return None
        line = self.line + blank.count(b"\n")
        return Raw(line, self.place + len(blank), content.rstrip())
