"""Chat records as pairs: what came before the last answer, and the answer, by the model's template.

The template's control tokens become control tokens; what messages say stays text, control spellings
included. To tell them apart, each control token has an alias that no text can know. Aliases take
the place of what messages spell before the template is rendered; afterwards aliases and spellings
change places, and the tokenizer knows the aliases as control tokens and the spellings as text.
"""

import datetime
import json
import re
import secrets
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import AddedToken

from gem_ds.corpus import tokenization
from gem_ds.corpus.records import Skip, encodable
from gem_ds.corpus.tokenization import Ids, Vocabulary
from gem_ds.errors import InputError

LONGEST = 1 << 20  # characters: a chat is encoded in one piece
NOW = "strftime_now("
TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
NO_ANSWER = "no assistant message after another"
NO_CALLS = "chat template knows no tool calls"
LEFT_OUT = "the chat template leaves out"
NOT_PREFIX = "chat template rewrites earlier messages"
REFUSED = "refused by the chat template"
TOO_LONG = f"chat longer than {LONGEST >> 20} Mi characters"


def stored_template(vocab: Vocabulary) -> str | None:
    """The tokenizer's chat template as it is stored, if it has one."""
    config = json.loads(vocab.side_files.get("tokenizer_config.json", "{}"))
    template = vocab.side_files.get("chat_template.jinja") or config.get("chat_template")
    if isinstance(template, list):  # several by name, as older files have them
        template = {one["name"]: one["template"] for one in template}.get("default")
    return str(template) if template else None


def template_of(vocab: Vocabulary, date: str = "") -> str:
    """The tokenizer's chat template; raises `InputError` if it has none.

    Where it writes the day's date, it writes `date` (YYYY-MM-DD) instead, without which that is an
    `InputError` too: the same command is to give the same shards on another day.
    """
    text = stored_template(vocab)
    if text is None:
        raise InputError(
            f"the tokenizer in {vocab.source} has no chat template, which --messages-field "
            "needs; take the tokenizer of the chat model, or put a chat_template.jinja there"
        )
    if NOW in text and date:
        day = datetime.date.fromisoformat(date)
        text = TODAY.sub(lambda match: repr(day.strftime(match[2])), text)  # a template's string
    if NOW in text:
        raise InputError(
            f"the chat template in {vocab.source} writes the day's date; give one with --chat-date "
            "YYYY-MM-DD, so that the same command gives the same shards on another day"
            + (" (its format is computed: write it out in the template)" if date else "")
        )
    return text


@dataclass(frozen=True)
class Chat:
    """A tokenizer's chat template, and what it takes to encode what that writes."""

    template: str
    named: Mapping[str, str]  # bos_token and so on, which templates refer to
    other: Mapping[str, str]  # the alias of a control token's spelling, and the reverse
    known: re.Pattern[str]  # any of those
    backend: Any  # the tokenizer, turning aliases into tokens
    id_of: Ids  # (V + aliases,): the id of what an alias stands for; other ids are themselves

    @classmethod
    def of(cls, vocab: Vocabulary, date: str = "") -> "Chat":
        """See `template_of` for the date, and what it raises."""
        added = vocab.backend.get_added_tokens_decoder()
        controls = {i: token for i, token in added.items() if token.special}
        secret = secrets.randbits(64)  # in ids it leaves no trace
        aliases = [
            AddedToken(
                f"\ue000{secret}.{i}\ue001", lstrip=t.lstrip, rstrip=t.rstrip, normalized=False
            )
            for i, t in controls.items()
        ]
        with_aliases, alias_ids = tokenization.with_tokens(vocab, aliases)
        id_of = np.arange(with_aliases.size, dtype=np.int32)
        id_of[alias_ids] = list(controls)
        pairs = [(t.content, a.content) for t, a in zip(controls.values(), aliases, strict=True)]
        other = dict(pairs) | {alias: spelling for spelling, alias in pairs}
        known = re.compile(_any_of(set(other)))
        return cls(template_of(vocab, date), vocab.named, other, known, with_aliases.backend, id_of)

    def encode(self, messages: Sequence[dict[str, Any]]) -> tuple[Ids, Ids]:
        """Ids of what leads to the last assistant message, and of that message.

        Together they are those of Transformers' ``apply_chat_template``, messages that spell
        control tokens aside. Raises `Skip` if there is no such message, or the template fails.
        """
        roles = [message.get("role") for message in messages]
        last = max((i for i, role in enumerate(roles) if role == "assistant"), default=0)
        if not last:
            raise Skip(NO_ANSWER)
        if "tool_calls" not in self.template and any(m.get("tool_calls") for m in messages):
            raise Skip(NO_CALLS)
        safe = [self._swapped(message) for message in messages[: last + 1]]
        context, whole = self._render(safe[:-1]), self._render(safe)
        if not whole.startswith(context):
            raise Skip(NOT_PREFIX)
        if len(whole) > LONGEST:
            raise Skip(TOO_LONG)
        context, answer = self._swapped(context), self._swapped(whole[len(context) :])
        encoding = self.backend.encode(context + answer, add_special_tokens=False)
        # A token of both, which a tokenizer may make where they meet, is the answer's.
        n = sum(end <= len(context) for _, end in encoding.offsets)
        ids = self.id_of[encoding.ids]
        return ids[:n], ids[n:]

    def prompt(self, messages: Sequence[dict[str, Any]]) -> Ids:
        """Ids of what leads to an answer to these messages.

        They are those of Transformers' ``apply_chat_template`` with ``add_generation_prompt``,
        messages that spell control tokens aside. Raises `Skip` if the template fails, or leaves out
        instructions, tool calls or what tools returned.
        """
        text = self._render([self._swapped(message) for message in messages], answering=True)
        if len(text) > LONGEST:
            raise Skip(TOO_LONG)
        self._check_said(messages)
        ids: Ids = self.id_of[
            self.backend.encode(self._swapped(text), add_special_tokens=False).ids
        ]
        return ids

    def _check_said(self, messages: Sequence[dict[str, Any]]) -> None:
        """Raise `Skip` if a message with a mark in it is rendered without the mark."""
        secret = secrets.token_hex(8)
        marked: list[dict[str, Any]] = []
        what: dict[str, str] = {}
        for i, message in enumerate(messages):
            mark, calls = f"x{secret}x{i}x", message.get("tool_calls")
            if calls:
                functions = [{**c["function"], "name": c["function"]["name"] + mark} for c in calls]
                pairs = zip(calls, functions, strict=True)
                message = {**message, "tool_calls": [{**c, "function": f} for c, f in pairs]}
                what[mark] = "tool calls"
            elif message["role"] not in ("user", "assistant"):
                message = {**message, "content": message["content"] + mark}
                what[mark] = f"messages of the role {message['role']!r}"
            marked.append(message)
        text = self._render(marked, answering=True) if what else ""
        if lost := next((name for mark, name in what.items() if mark not in text), None):
            raise Skip(f"{LEFT_OUT} {lost}")

    def _render(self, messages: list[dict[str, Any]], answering: bool = False) -> str:
        # Transformers' own rendering; it loads in a second, and loads no torch.
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, _ = render_jinja_template(
                [messages],
                chat_template=self.template,
                add_generation_prompt=answering,
                **self.named,
            )
        except Exception:  # whatever a template raises for roles or fields that it does not know
            raise Skip(REFUSED) from None
        return encodable(texts[0])

    def _swapped(self, value: Any) -> Any:
        """The value with aliases for control spellings, and the reverse, in every string of it."""
        if isinstance(value, str):
            return self.known.sub(lambda match: self.other[match[0]], value)
        if isinstance(value, dict):
            return {self._swapped(key): self._swapped(x) for key, x in value.items()}
        if isinstance(value, list | tuple):
            return [self._swapped(x) for x in value]
        return value


def _any_of(words: Set[str]) -> str:
    """A pattern of the longest of these words, in a time that does not grow with their number."""
    if words == {""}:
        return ""
    rests: dict[str, set[str]] = {}
    for word in words - {""}:
        rests.setdefault(word[0], set()).add(word[1:])
    found = "|".join(re.escape(first) + _any_of(rest) for first, rest in sorted(rests.items()))
    return f"(?:{found or '(?!)'})" + "?" * ("" in words)
