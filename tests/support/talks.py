"""Chats, for tests that render them."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from gem_ds.corpus import tokenization
from gem_ds.corpus.chat_template import Chat
from gem_ds.corpus.tokenization import Vocabulary

EACH = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"


def turns(contents: list[str], system: str = "") -> list[dict[str, str]]:
    roles = ["user", "assistant"] * len(contents)
    talk = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    return [{"role": "system", "content": system}, *talk] if system else talk


def together(pair: tuple[np.ndarray, np.ndarray]) -> list[int]:
    return np.concatenate(pair).tolist()


def with_template(folder: Path, template: str) -> tuple[Vocabulary, Chat]:
    vocab = tokenization.load(folder)
    vocab = replace(vocab, side_files={**vocab.side_files, "chat_template.jinja": template})
    return vocab, Chat.of(vocab)
