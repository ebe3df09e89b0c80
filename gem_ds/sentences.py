"""Where in a sequence of token ids a sentence or a line ends, found without going back to text."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gem_ds.layout import Index
from gem_ds.tokenization import Ids, Vocabulary

Flags = npt.NDArray[np.bool_]
CLOSING = "\"'”’»)]"  # noqa: RUF001
ENDS = (".", "!", "?", "…")
ENDS_WITHOUT_SPACE = ("。", "！", "？", "｡", "।")  # noqa: RUF001


@dataclass(frozen=True)
class Breaks:
    """What each token of a vocabulary says about breaks; every field is (V,) bool.

    A sentence ends with ``. ! ? …``, perhaps closed by a quote or bracket, before white space; an
    abbreviation's full stop counts too. A line ends with a newline.
    """

    ends_sentence: Flags
    ends_anyway: Flags  # a line, or a sentence in a script without spaces
    closes: Flags  # nothing but quotes and brackets
    begins_word: Flags  # with white space

    @classmethod
    def of(cls, vocab: Vocabulary) -> "Breaks":
        """Read off the vocabulary: some hundred thousand small decodings, less than a second."""
        texts = _spellings(vocab.backend, vocab.size)
        bare = [text.rstrip(CLOSING) for text in texts]
        return cls(
            np.array([b.endswith(ENDS) for b in bare]),
            np.array(
                [
                    t.endswith("\n") or b.endswith(ENDS_WITHOUT_SPACE)
                    for t, b in zip(texts, bare, strict=True)
                ]
            ),
            np.array([bool(t) and not b for t, b in zip(texts, bare, strict=True)]),
            np.array([t[:1].isspace() for t in texts]),
        )

    def after(self, ids: Ids) -> Index:
        """How many tokens stand before each break, ascending; the end of the text is none."""
        ended = self.ends_sentence[ids]
        ended[1:] |= self.closes[ids[1:]] & ended[:-1]
        breaks = (ended[:-1] & self.begins_word[ids[1:]]) | self.ends_anyway[ids[:-1]]
        return np.flatnonzero(breaks) + 1


def _spellings(backend: Any, size: int) -> list[str]:
    """What each id adds to a text. Decoders trim a text's beginning, so another stands before."""
    before = backend.encode("a", add_special_tokens=False).ids
    n = len(backend.decode(before, skip_special_tokens=False))
    texts = backend.decode_batch([[*before, i] for i in range(size)], skip_special_tokens=False)
    return [text[n:] for text in texts]
