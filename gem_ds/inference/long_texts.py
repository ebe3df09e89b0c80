"""Texts that somebody gives as the documents ``bos text | summary`` that a model embeds.

What of a text is no valid Unicode is refused here, and what a model has no room for is cut or read
in windows. The texts of a corpus are in `texts` and `documents`.

Shapes: N texts, D documents, k summary tokens.
"""

import sys
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from gem_ds.corpus import tokenization
from gem_ds.corpus.tokenization import Ids, Vocabulary
from gem_ds.errors import InputError
from gem_ds.layout import Index

LongTexts = Literal["cut", "windows"]


class Read(NamedTuple):
    """N texts as D documents, in the order of the texts."""

    documents: list[Ids]
    owners_D: Index  # whose text a document is of
    shares_D: npt.NDArray[np.float32]  # of its owner's tokens, 1 in all
    lengths_N: Index  # tokens of each text that were read, the prompt's with them


def ids_of(vocab: Vocabulary, texts: Sequence[str]) -> list[Ids]:
    """The ids of each text, nothing added. Text that spells a control token is text.

    Raises `InputError` as `check` does.
    """
    check(texts)
    return tokenization.encode(vocab, texts)


def check(texts: Sequence[str]) -> None:
    """Raise `InputError` for what is no string, or holds half of a surrogate pair."""
    for i, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise InputError(f"text {i} is a {type(text).__name__}; give strings")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"text {i} is not valid Unicode: a lone surrogate at character "
                    f"{error.start + 1}; decode it from its bytes again or remove it"
                ) from None


def head(vocab: Vocabulary) -> Ids:
    """What stands before every text: the bos token, where there is one."""
    return np.array([] if vocab.bos_token_id is None else [vocab.bos_token_id], dtype=np.int32)


def read(
    vocab: Vocabulary,
    texts: Sequence[str],
    summary_tokens: Ids,
    limit: int,
    prompt: str = "",
    long_texts: LongTexts = "cut",
) -> Read:
    """``bos prompt text | summary`` of each text, in at most `limit` tokens.

    Of a longer one the end is left out, which is said once on stderr; with ``windows`` the text
    becomes as few documents of equal length as fit, the prompt before each. Raises `InputError` as
    `check` does, for a text of no tokens if the tokenizer has no bos, and for a prompt that leaves
    no room.
    """
    if long_texts not in get_args(LongTexts):
        raise InputError(f"long texts {long_texts!r}: choose {' or '.join(get_args(LongTexts))}")
    check(texts)
    before = head(vocab)
    room = limit - len(before) - len(summary_tokens)
    prompt_ids = ids_of(vocab, [prompt])[0]
    if len(prompt_ids) >= room:
        raise InputError(
            f"the prompt has {len(prompt_ids)} tokens, which leaves none of {limit} to a text; "
            "shorten it"
        )
    parts: list[Ids] = []
    owners: list[int] = []
    n_cut = 0
    for i, ids in enumerate(tokenization.encode(vocab, [prompt + t for t in texts])):
        if not len(before) + len(ids):
            raise InputError(
                f"text {i + 1} is empty, and this model has no bos token to embed in its place; "
                "remove it"
            )
        if len(ids) <= room or long_texts == "cut":
            n_cut += len(ids) > room
            parts.append(ids[:room])
        else:
            parts += _windows(tokenization.encode(vocab, [texts[i]])[0], prompt_ids, room)
        owners += [i] * (len(parts) - len(owners))
    if n_cut:
        print(
            f"{n_cut} of {len(texts)} texts are longer than {limit} tokens and were cut there",
            file=sys.stderr,
        )
    owners_D = np.array(owners, dtype=np.int64)
    lengths_D = np.array([len(ids) for ids in parts], dtype=np.int64)
    lengths_N = np.zeros(len(texts), dtype=np.int64)
    np.add.at(lengths_N, owners_D, lengths_D)
    shares_D = np.maximum(lengths_D, 1) / np.maximum(lengths_N, 1)[owners_D]
    documents = [np.concatenate([before, ids, summary_tokens]) for ids in parts]
    return Read(documents, owners_D, shares_D.astype(np.float32), lengths_N)


def _windows(ids: Ids, prompt: Ids, room: int) -> list[Ids]:
    n = -(-len(ids) // (room - len(prompt)))
    return [np.concatenate([prompt, part]) for part in np.array_split(ids, n)]
