"""Chat records as pairs: what came before the last answer, and the answer, by the model's template.

The template's control tokens become control tokens; what messages say stays text, control spellings
included.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from gem_ds import tokenization
from gem_ds.errors import InputError
from gem_ds.records import Skip
from gem_ds.tokenization import PIECE, Ids, Vocabulary

NO_ANSWER = "no assistant message after another"
REFUSED = "refused by the chat template"
NOT_PREFIX = "chat template rewrites earlier messages"
STAND_IN = (
    "\ue000{}\ue001"  # private use: stands for the i-th control token where a message spells it
)


class Rendered(NamedTuple):
    """A context and its answer as the template writes them.

    Where a message spells a control token there is a stand-in, if `forged`.
    """

    context: str
    answer: str
    forged: bool


@dataclass(frozen=True)
class Chat:
    """A tokenizer's chat template, and what it takes to encode what that writes."""

    vocab: Vocabulary
    template: str
    tokens: dict[str, str]  # bos_token and so on, which templates refer to
    controls: tuple[str, ...]
    parsing: Any  # the tokenizer, turning control spellings into control tokens

    @classmethod
    def of(cls, vocab: Vocabulary) -> "Chat":
        """Raises `InputError` if the tokenizer has no chat template."""
        config = json.loads(vocab.side_files.get("tokenizer_config.json", "{}"))
        template = vocab.side_files.get("chat_template.jinja") or config.get("chat_template")
        if isinstance(template, list):  # several by name, as older files have them
            template = {one["name"]: one["template"] for one in template}.get("default")
        if not template:
            raise InputError(
                f"the tokenizer in {vocab.source} has no chat template, which --messages-field "
                "needs; take the tokenizer of the chat model, or put a chat_template.jinja there"
            )
        names = {key: config[key] for key in config if key.endswith("_token") and config[key]}
        tokens = {k: v["content"] if isinstance(v, dict) else str(v) for k, v in names.items()}
        added = vocab.backend.get_added_tokens_decoder().values()
        controls = sorted((str(t.content) for t in added if t.special), key=lambda c: (-len(c), c))
        parsing = Tokenizer.from_str(vocab.backend.to_str())
        parsing.encode_special_tokens = False
        return cls(vocab, template, tokens, tuple(controls), parsing)

    def render(self, messages: Sequence[dict[str, Any]]) -> Rendered:
        """The last assistant message and what leads to it. Raises `Skip` if there is none."""
        roles = [message.get("role") for message in messages]
        last = max((i for i, role in enumerate(roles) if role == "assistant"), default=0)
        if not last:
            raise Skip(NO_ANSWER)
        safe = self._replaced(messages[: last + 1])
        context, whole = self._render(safe[:-1]), self._render(safe)
        if not whole.startswith(context):
            raise Skip(NOT_PREFIX)
        return Rendered(context, whole[len(context) :], safe != list(messages[: last + 1]))

    def _render(self, messages: list[dict[str, Any]]) -> str:
        # Transformers' own rendering; it loads in a second, and loads no torch.
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, _ = render_jinja_template([messages], chat_template=self.template, **self.tokens)
        except (
            Exception
        ):  # a template raises whatever it likes, for roles or fields it does not know
            raise Skip(REFUSED) from None
        return str(texts[0])

    def _replaced(self, value: Any) -> Any:
        """Messages with stand-ins for control tokens, in every string of theirs."""
        if isinstance(value, dict):
            return {key: self._replaced(x) for key, x in value.items()}
        if isinstance(value, list | tuple):
            return [self._replaced(x) for x in value]
        if isinstance(value, str) and any(c in value for c in self.controls):
            for i, control in enumerate(self.controls):
                value = value.replace(control, STAND_IN.format(i))
        return value

    def encode(self, rendered: Sequence[Rendered]) -> list[tuple[Ids, Ids]]:
        """Ids of context and answer of each.

        As Transformers' ``apply_chat_template`` gives them; only where a message spells a control
        token, or is very long, is the text encoded piece by piece, between the template's controls.
        """
        texts = [text for item in rendered for text in (item.context, item.answer)]
        forged = [item.forged for item in rendered for _ in range(2)]
        ids: list[Ids] = [np.zeros(0, dtype=np.int32)] * len(texts)
        whole = [i for i, text in enumerate(texts) if not forged[i] and len(text) <= PIECE]
        encodings = self.parsing.encode_batch_fast(
            [texts[i] for i in whole], add_special_tokens=False
        )
        for i, encoding in zip(whole, encodings, strict=True):
            ids[i] = np.array(encoding.ids, dtype=np.int32)
        for i in sorted(set(range(len(texts))) - set(whole)):
            ids[i] = np.concatenate([ids[i], *self._by_pieces(texts[i])])
        return list(zip(ids[::2], ids[1::2], strict=True))

    def _by_pieces(self, text: str) -> Iterator[Ids]:
        pattern = "|".join(map(re.escape, self.controls))
        for piece in re.split(f"({pattern})", text) if pattern else [text]:
            if piece in self.controls:
                yield np.array([self.vocab.backend.token_to_id(piece)], dtype=np.int32)
            elif piece:
                for i, control in enumerate(self.controls):
                    piece = piece.replace(STAND_IN.format(i), control)
                yield tokenization.encode(self.vocab, [piece])[0]
