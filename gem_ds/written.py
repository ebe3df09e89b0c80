"""The text of tokens that come one by one: whole characters, and an end at given words."""

from collections.abc import Sequence

from gem_ds.tokenization import Ids, Vocabulary

CONTEXT = 6  # tokens of the prompt that decoders see, so that a word after one keeps its space
BROKEN = "\ufffd"


class Written:
    """What has been written behind a prompt, handed out as soon as it is certain.

    A character is handed out when its last byte has come, and what may be the beginning of a stop
    word when it turns out to be none. Control tokens are no text. The pieces join up to those of
    `decoding.pieces`, which pulls tokens from one loop, where here many texts are pushed theirs.
    """

    def __init__(self, vocab: Vocabulary, prompt: Ids, stop: Sequence[str] = ()) -> None:
        self.backend = vocab.backend
        self.ids: list[int] = prompt[-CONTEXT:].tolist()
        if self._decode(0, None).endswith(BROKEN):
            self.ids = []
        self.start, self.read = 0, len(self.ids)  # ids[start:read] have been handed out
        self.stop = stop
        self.held = ""
        self.stopped = False

    def _decode(self, start: int, end: int | None) -> str:
        return str(self.backend.decode(self.ids[start:end]))

    def add(self, token: int) -> str:
        """What is certain now, with one token more."""
        self.ids.append(token)
        return self._taken(self._fresh(), last=False)

    def end(self) -> str:
        """What may have begun a stop word, when no token comes any more. A character that has only
        begun is left out."""
        return "" if self.stopped else self._taken("", last=True)

    def _fresh(self) -> str:
        before, now = self._decode(self.start, self.read), self._decode(self.start, None)
        if len(now) <= len(before) or now.endswith(BROKEN):
            return ""
        self.start, self.read = self.read, len(self.ids)
        return now[len(before) :]

    def _taken(self, text: str, last: bool) -> str:
        self.held += text
        found = [at for at in map(self.held.find, self.stop) if at >= 0]
        if found:
            self.stopped = True
            taken, self.held = self.held[: min(found)], ""
            return taken
        n = 0 if last else self._begun()
        taken, self.held = self.held[: len(self.held) - n], self.held[len(self.held) - n :]
        return taken

    def _begun(self) -> int:
        """Characters at the end that may be the beginning of a stop word."""
        lengths = range(min(len(self.held), max(map(len, self.stop), default=1) - 1), 0, -1)
        words = tuple(self.stop)
        return next(
            (n for n in lengths if any(word.startswith(self.held[-n:]) for word in words)), 0
        )
