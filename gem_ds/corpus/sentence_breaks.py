"""Where in a sequence of token ids a sentence or a line ends."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gem_ds.corpus.tokenization import Ids, Vocabulary
from gem_ds.layout import Index

BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # how a vocabulary with byte fallback writes a byte
SHOWN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
HIDDEN = sorted(set(range(0x100)) - set(SHOWN))
# How byte-level vocabularies write bytes (GPT-2's `bytes_to_unicode`).
ALPHABET = {chr(b): b for b in SHOWN} | {chr(0x100 + i): b for i, b in enumerate(HIDDEN)}
SPACES = "".join(filter(str.isspace, map(chr, range(0x3001))))
CLOSING = "\"'”’»)]」』）】"  # noqa: RUF001
ENDS = ".!?…"
ENDS_WITHOUT_SPACE = "。！？｡।"  # noqa: RUF001


def _any(characters: str) -> bytes:
    return b"(?:%s)" % b"|".join(re.escape(c.encode()) for c in characters)


BREAK = re.compile(
    rb"%s%s*(?=%s)|%s%s*|\n"
    % (_any(ENDS), _any(CLOSING), _any(SPACES), _any(ENDS_WITHOUT_SPACE), _any(CLOSING))
)


@dataclass(frozen=True)
class Breaks:
    """Finds breaks by what each token of a vocabulary spells, by id, in UTF-8.

    A sentence ends with ``. ! ? …``, perhaps closed by quotes and brackets, before white space (so
    does an abbreviation), or with the full stop of a script without spaces. A line ends with a
    newline.
    """

    spelled: Mapping[int, bytes]

    @classmethod
    def of(cls, vocab: Vocabulary) -> "Breaks":
        """Of a tokenizer; a token is looked at when it first occurs."""
        return cls(_Spelled(vocab.backend))

    def after(self, ids: Ids) -> Index:
        """How many tokens stand before each break, ascending; the end of the text is none."""
        spelled = [self.spelled[i] for i in ids.tolist()]
        text = b"".join(spelled)
        ends = np.cumsum([len(token) for token in spelled])
        found = np.array([m.end() for m in BREAK.finditer(text)], dtype=np.int64)
        found = found[found < len(text)]
        token = np.searchsorted(ends, found)
        breaks: Index = token[ends[token] == found] + 1
        return breaks


class _Spelled(dict[int, bytes]):
    """What each id adds to a text. Decoders trim a text's beginning, so another stands before."""

    def __init__(self, backend: Any) -> None:
        super().__init__()
        self.backend = backend
        self.before: list[int] = backend.encode("a", add_special_tokens=False).ids
        self.n = len(backend.decode(self.before, skip_special_tokens=False))

    def __missing__(self, token_id: int) -> bytes:
        text = self.backend.decode([*self.before, token_id], skip_special_tokens=False)[self.n :]
        self[token_id] = text.encode()
        if "\ufffd" in text:  # a part of a character, unless it is the character of this number
            token = self.backend.id_to_token(token_id)
            if byte := BYTE.fullmatch(token):
                self[token_id] = bytes([int(byte[1], 16)])
            elif ALPHABET.keys() >= set(token):
                self[token_id] = bytes(ALPHABET[c] for c in token)
        return self[token_id]
