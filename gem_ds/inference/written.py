"""The text of tokens that come one by one: whole characters, and an end at given words."""

from collections.abc import Iterable, Iterator, Sequence

from tokenizers.decoders import DecodeStream

from gem_ds.corpus.tokenization import Ids, Vocabulary


class Written:
    """What has been written behind a prompt, handed out as soon as it is certain.

    A character is handed out when its last byte has come, and what may be the beginning of a stop
    word when it turns out to be none. Control tokens are no text. Tokens are pushed, since many
    texts may be written at once.
    """

    def __init__(self, vocab: Vocabulary, prompt: Ids, stop: Sequence[str] = ()) -> None:
        self.backend = vocab.backend
        # The prompt is there so that a word after one keeps its space.
        self.stream = DecodeStream(ids=prompt.tolist(), skip_special_tokens=True)
        self.stop = stop
        self.held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """What is certain now, with one token more; all before the first stop word, if it came."""
        self.held += self.stream.step(self.backend, token) or ""
        found = [at for at in map(self.held.find, self.stop) if at >= 0]
        if found:
            self.stopped = True
            taken, self.held = self.held[: min(found)], ""
            return taken
        certain = len(self.held) - max((_overlap(self.held, word) for word in self.stop), default=0)
        taken, self.held = self.held[:certain], self.held[certain:]
        return taken

    def end(self) -> str:
        """What may have begun a stop word, when no token comes any more. A character that has only
        begun is left out."""
        taken, self.held = self.held, ""
        return taken


def pieces(written: Written, tokens: Iterable[int], ends: set[int]) -> Iterator[str]:
    """The text of tokens, as soon as it is certain. A token of `ends` ends it, as a stop word does,
    and is not shown."""
    for token in tokens:
        if token in ends:
            break
        if piece := written.add(token):
            yield piece
        if written.stopped:
            return
    if piece := written.end():
        yield piece


def shown(text: str) -> str:
    """A text as a command shows it, which says so where there is nothing to see."""
    return text if text.strip() else "(an empty answer)"


def _overlap(text: str, word: str) -> int:
    """How many of the last characters of a text may be the first of a word."""
    longest = min(len(text), len(word) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(word[:n])), 0)
