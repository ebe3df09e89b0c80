"""Reading, extending, saving and identifying a tokenizer, and encoding text with it.

Only the `tokenizers` library is used, so that data preparation needs neither Transformers nor
torch. Text never becomes a control token: `encode_special_tokens` is set on every tokenizer that
leaves `load`, and checked. (It does not cover added tokens that the tokenizer itself declares as
ordinary text, ``special: false``.)
"""

import hashlib
import itertools
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer

from gem_ds.errors import InputError
from gem_ds.files import check_path

Ids = npt.NDArray[np.int32]
SUMMARY_NAME = re.compile(r"<\|summary_\d+\|>")
SIDE_FILES = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
PIECE = 1 << 17  # characters an encode call gets of one text; encoding takes some 100 times as much
CALL = 1 << 18  # characters an encode call gets in all: more overflow the caches
# Settings that would make Transformers build another tokenizer than tokenizer.json describes.
REBUILDING = ("auto_map", "added_tokens_decoder")


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer and the ids of its control tokens.

    `bos_token_id` is set only if the tokenizer puts that token in front of a text by itself.
    `side_files` holds, by name, the files that lie beside tokenizer.json; `named` is what these
    call ``bos_token``, ``eos_token`` and so on.
    """

    backend: Any
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    source: Path
    side_files: Mapping[str, str]
    named: Mapping[str, str]

    @cached_property  # the backend makes its whole vocabulary anew when asked for it
    def size(self) -> int:
        """One more than the highest id, summary tokens included."""
        return 1 + int(max(self.backend.get_vocab(with_added_tokens=True).values()))


def load(name: str | Path) -> Vocabulary:
    """Read the tokenizer in a folder, or the one of this name on the Hugging Face hub.

    Raises `InputError` if there is none, or it is damaged, or its text can spell control tokens.
    """
    check_path(name, "give a folder with a tokenizer.json")
    folder = Path(name)
    if not folder.exists():
        folder = _download(str(name))
    if not (folder / "tokenizer.json").is_file():
        with tempfile.TemporaryDirectory() as converted:
            _convert(folder, Path(converted))
            return _read(Path(converted), source=folder)
    return _read(folder, source=folder)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["tokenizer*", "special_tokens_map.json", "chat_template*", "*.model", "config.json"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # offline, unknown, private: the hub has a dozen classes for these
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{name} is neither a folder here nor to be had from the hub ({reason}); "
            "give a folder with a tokenizer.json"
        ) from error


def _convert(folder: Path, converted: Path) -> None:
    """Write the tokenizer.json that Transformers makes of another format (SentencePiece, say)."""
    if not any(folder.glob("*.model")) and not any(folder.glob("vocab*")):
        raise InputError(f"{folder} holds no tokenizer.json and no SentencePiece model")
    from transformers import AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(folder).save_pretrained(converted)
    except Exception as error:  # whatever a converter stumbles over is about the user's files
        raise InputError(
            f"the tokenizer in {folder} could not be converted to a tokenizer.json ({error})"
        ) from error
    if not (converted / "tokenizer.json").is_file():
        raise InputError(f"the tokenizer in {folder} has no tokenizer.json and no fast version")


def _read(folder: Path, source: Path) -> Vocabulary:
    try:
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises bare Exception
        raise InputError(f"{source / 'tokenizer.json'} could not be read: {error}") from error
    there = [name for name in SIDE_FILES if (folder / name).is_file()]
    try:
        side_files = {name: (folder / name).read_text(encoding="utf-8") for name in there}
    except UnicodeDecodeError as error:
        raise InputError(f"a file in {source} is not UTF-8: {error}") from error
    named = _named(side_files, source)
    eos, pad = (_control_id(backend, named, role, source) for role in ("eos", "pad"))
    return _guarded(Vocabulary(backend, _leading_id(backend), eos, pad, source, side_files, named))


def _named(side_files: Mapping[str, str], source: Path) -> dict[str, str]:
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):  # the latter wins
        try:
            settings |= json.loads(side_files.get(name, "{}"))
        except (ValueError, TypeError) as error:
            raise InputError(f"{source / name} is not a JSON object: {error}") from error
    tokens = {n: t.get("content") if isinstance(t, dict) else t for n, t in settings.items()}
    return {n: t for n, t in tokens.items() if n.endswith("_token") and isinstance(t, str)}


def _control_id(backend: Any, named: Mapping[str, str], role: str, source: Path) -> int | None:
    token = named.get(f"{role}_token")
    if token is None:
        return None
    token_id: int | None = backend.token_to_id(token)
    if token_id is None:
        raise InputError(
            f"{source} names {token!r} as its {role} token, but that is not in its vocabulary; "
            "correct tokenizer_config.json"
        )
    return token_id


def _leading_id(backend: Any) -> int | None:
    """The id that the post-processor puts in front of a text, if any."""
    bare = backend.encode("a", add_special_tokens=False).ids
    full = backend.encode("a", add_special_tokens=True).ids
    return full[0] if len(full) > len(bare) and full[1 : 1 + len(bare)] == bare else None


def _guarded(vocab: Vocabulary) -> Vocabulary:
    """The vocabulary with its guard set: encoding text neither cuts, pads nor yields controls."""
    vocab.backend.no_truncation()
    vocab.backend.no_padding()
    vocab.backend.encode_special_tokens = True
    added = vocab.backend.get_added_tokens_decoder().items()
    unknown = vocab.named.get("unk_token")  # what no text can be without
    special = {i for i, token in added if token.special and token.content != unknown}
    for control in sorted({vocab.bos_token_id, vocab.eos_token_id, *special} - {None}):
        token = vocab.backend.id_to_token(control)
        if control in vocab.backend.encode(f"a {token} b{token}", add_special_tokens=False).ids:
            raise InputError(
                f"the tokenizer in {vocab.source} turns text that spells {token!r} into that "
                "control token, so text could forge it; declare it as a special added token"
            )
    return vocab


def summary_names(k: int) -> list[str]:
    """What the k summary tokens are called."""
    return [f"<|summary_{i}|>" for i in range(k)]


def summary_ids(vocab: Vocabulary) -> list[int]:
    """The ids of the summary tokens that the tokenizer has, in order."""
    tokens = vocab.backend.get_added_tokens_decoder()
    found = {
        token.content: i
        for i, token in tokens.items()
        if SUMMARY_NAME.fullmatch(str(token.content))
    }
    names = summary_names(len(found))
    if set(names) != set(found):
        raise InputError(
            f"the tokenizer in {vocab.source} has the summary tokens {sorted(found)}, which are "
            "not numbered from 0; start from the tokenizer without them"
        )
    return [found[name] for name in names]


def add_summary_tokens(vocab: Vocabulary, k: int) -> tuple[Vocabulary, list[int]]:
    """The vocabulary with ``<|summary_0|>`` … ``<|summary_{k-1}|>`` behind it, and their ids (k,).

    A tokenizer that has exactly these tokens is returned as it is. Raises `InputError` if it has
    another number of them, or has an ordinary token of such a name.
    """
    names = summary_names(k)
    taken: dict[str, int] = vocab.backend.get_vocab(with_added_tokens=True)
    special = {t.content for t in vocab.backend.get_added_tokens_decoder().values() if t.special}
    ordinary = sorted(name for name in set(taken) - special if SUMMARY_NAME.fullmatch(name))
    if ordinary:
        raise InputError(
            f"the tokenizer in {vocab.source} already has an ordinary token {ordinary[0]!r}, the "
            "name of a summary token; rename it in tokenizer.json"
        )
    present = summary_ids(vocab)
    if len(present) not in (0, k):
        raise InputError(
            f"the tokenizer in {vocab.source} already has {len(present)} summary tokens, "
            f"{k} were asked for; use --summary-tokens {len(present)} or the original tokenizer"
        )
    if present or not k:
        return vocab, present
    return with_tokens(vocab, [AddedToken(n, special=True, normalized=False) for n in names])


def with_tokens(vocab: Vocabulary, tokens: list[Any]) -> tuple[Vocabulary, list[int]]:
    """The vocabulary with new tokens behind it, and their ids; `InputError` if it has gaps."""
    backend = Tokenizer.from_str(vocab.backend.to_str())
    backend.add_tokens(tokens)
    now = backend.get_vocab(with_added_tokens=True)
    ids = [now[token.content] for token in tokens]
    if len(set(ids) - set(vocab.backend.get_vocab(with_added_tokens=True).values())) < len(ids):
        raise InputError(
            f"the vocabulary in {vocab.source} has gaps, so new tokens get ids {ids[:3]}… that "
            "are taken; fill the gaps with placeholder tokens in tokenizer.json"
        )
    return _guarded(replace(vocab, backend=backend)), ids


def save(vocab: Vocabulary, folder: Path) -> None:
    """Write the tokenizer so that `load` and Transformers' ``AutoTokenizer`` give the same ids."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads(vocab.side_files.get("tokenizer_config.json", "{}"))
    for key in REBUILDING:
        config.pop(key, None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # reads tokenizer.json as it stands
    files = dict(vocab.side_files) | {"tokenizer_config.json": json.dumps(config, indent=2) + "\n"}
    files["tokenizer.json"] = vocab.backend.to_str(pretty=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def fingerprint(vocab: Vocabulary, *, summary_tokens: bool = True) -> str:
    """sha256 of what decides which ids a text gets, whatever the formatting of the files.

    Vocabulary, merges, normalizer, pre-tokenizer and added tokens count; padding, truncation, the
    decoder and what is put around a text do not. With ``summary_tokens=False`` the summary tokens
    are left out, which gives the fingerprint of the tokenizer they were added to.
    """
    state = json.loads(vocab.backend.to_str())
    model = {key: value for key, value in state["model"].items() if value not in (None, False, "")}
    if "merges" in model:  # a list of pairs; older files write "left right"
        model["merges"] = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    added = [
        token
        for token in sorted(state["added_tokens"], key=lambda token: int(token["id"]))
        if summary_tokens or not SUMMARY_NAME.fullmatch(token["content"])
    ]
    identity = {
        "model": model,
        "normalizer": state["normalizer"],
        "pre_tokenizer": state["pre_tokenizer"],
        "added_tokens": added,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def pieces(text: str, limit: int = PIECE) -> Iterator[str]:
    """Cut a text into pieces of at most `limit` characters that join up to it.

    A cut is made before a single space if there is one in the last 4,096 characters: byte-level
    tokenizers separate words there anyway, so the ids join up to those of the whole text. Else it
    is made after a line, else anywhere; then, and with tokenizers that mark the beginning of a
    text, the tokens at the seam may differ from those of the whole text.
    """
    start = 0
    while len(text) - start > limit:
        window = text[start + max(limit - 4096, 1) : start + limit + 1]
        seams = [match.start() for match in re.finditer(r"(?<=\S) (?=\S)", window)]
        line = window.rfind("\n", 0, -1)
        back = len(window) - 1
        cut = seams[-1] if seams else line + 1 if line >= 0 else back
        end = start + limit - back + cut
        yield text[start:end]
        start = end
    yield text[start:]


def encode(vocab: Vocabulary, texts: Sequence[str]) -> list[Ids]:
    """The ids of each text, nothing added. The texts must be valid Unicode (no lone surrogates)."""
    parts: list[list[Ids]] = [[] for _ in texts]
    todo = [(owner, piece) for owner, text in enumerate(texts) for piece in pieces(text)]
    ends = np.cumsum([len(piece) for _, piece in todo])
    for _, group in itertools.groupby(range(len(todo)), key=lambda i: int(ends[i]) // CALL):
        call = [todo[i] for i in group]
        encodings = vocab.backend.encode_batch_fast([p for _, p in call], add_special_tokens=False)
        for (owner, _), encoding in zip(call, encodings, strict=True):
            parts[owner].append(np.array(encoding.ids, dtype=np.int32))
    return [np.concatenate(ids) for ids in parts]
