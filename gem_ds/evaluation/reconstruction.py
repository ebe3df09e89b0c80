"""What summary tokens hold of a text: written back from their keys and values alone, by length.

The paper's Appendix B. Compressing and decoding themselves are in `inference.memories`.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gem_ds.attention.hf_config import longest_document
from gem_ds.corpus import tokenization, train_tokenizer
from gem_ds.errors import InputError
from gem_ds.evaluation import evaluate
from gem_ds.evaluation.result_files import Candidate, write_json
from gem_ds.export.gem_config import read_gem_config
from gem_ds.files import sha256
from gem_ds.inference import encoder
from gem_ds.inference.gem_model import sharing_weights

LENGTHS = (10, 30, 100)


def run(
    model: Candidate,
    path: Path,
    output: Path,
    lengths: Sequence[int] = LENGTHS,
    field: str = "text",
    limit: int = 1000,
    batch_tokens: int = 2048,
) -> dict[str, Any]:
    """Shares of texts and of their tokens that the model gives back, by length in tokens.

    For each length the first `limit` texts that are as long are cut there. ``exact`` is the share
    that comes back word for word, ``in_place`` that of tokens which are right at their place, and
    ``overlap`` that of tokens which come back anywhere. They are kept in `output`; where they are
    there, they are read. Raises `InputError` for a length that no text or model has.
    """
    kept = output / "reconstruct" / model.place / f"{path.stem}-{sha256(path)[:8]}-{limit}.json"
    result = json.loads(kept.read_text()) if kept.exists() else {"lengths": {}}
    missing = [n for n in sorted(set(lengths)) if str(n) not in result["lengths"]]
    if missing:
        texts = list(train_tokenizer.texts_in([str(path)], field))
        lms, vocab, gem = _load(model, max(missing))
        for n in missing:
            result["lengths"][str(n)] = _measure(lms, vocab, gem, texts, n, limit, batch_tokens)
            result |= {"model": {"name": model.name, "revision": model.revision}}
            write_json(kept, result)
    return {str(n): result["lengths"][str(n)] for n in sorted(set(lengths))}


def _load(model: Candidate, longest: int) -> tuple[Any, Any, Any]:
    if not model.is_export:
        raise InputError(f"{model.folder} only embeds; reconstruction needs an export")
    folder = model.folder / "model"
    gem = read_gem_config(folder)
    if not gem.summary_tokens:
        raise InputError(f"{folder} has no summary tokens, so nothing holds a text")
    writer = encoder.load(folder)
    need = 1 + 2 * longest + len(gem.summary_tokens)
    room = longest_document(writer.config)
    if need > room:
        raise InputError(
            f"a text of {longest} tokens, its summary and the text again are {need} tokens, but "
            f"the model has {room} positions; give shorter --lengths"
        )
    reader = sharing_weights(writer)  # where an adapter can be at the summary tokens
    if gem.adapter:
        encoder.put_on_adapter(reader, folder)
    return (reader, writer), tokenization.load(folder), gem


def _measure(
    lms: tuple[Any, Any],
    vocab: Any,
    gem: Any,
    texts: Sequence[str],
    n: int,
    limit: int,
    batch_tokens: int,
) -> dict[str, Any]:
    reader, writer = lms
    long_enough: list[str] = []
    for text in texts:
        if len(long_enough) < limit and len(tokenization.encode(vocab, [text])[0]) >= n:
            long_enough.append(text)
    if not long_enough:
        raise InputError(f"no text has {n} tokens; give longer texts or leave {n} out of --lengths")
    exact: list[float] = []
    in_place: list[float] = []
    overlap: list[float] = []
    at_once = max(1, batch_tokens // n)
    for at in range(0, len(long_enough), at_once):
        own_NT, written_NT = evaluate.written_back(
            *(reader, writer, vocab, gem.summary_tokens),
            *(long_enough[at : at + at_once], n, gem.summary_attention),
        )
        same_NT = own_NT == written_NT
        exact += same_NT.all(1).astype(float).tolist()
        in_place += same_NT.mean(1).tolist()
        overlap += [_overlap(*pair) for pair in zip(own_NT, written_NT, strict=True)]
    shares = {"exact": exact, "in_place": in_place, "overlap": overlap}
    means = {name: float(np.mean(values)) for name, values in shares.items()}
    return {"texts": len(exact), **means, "items": shares}


def _overlap(own_T: Any, written_T: Any) -> float:
    """The share of a text's tokens that come back, each as often as it is there."""
    return (Counter(own_T.tolist()) & Counter(written_T.tolist())).total() / len(own_T)
