"""``README.md`` of an export: what the model is, how to use it, and where it comes from.

The text is made of ``run.json``, ``metrics.jsonl``, ``gem_config.json``, the licence that the card
of the base names, and measured scores. Paths of the machine that trained are left out.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData, metadata_load, try_to_load_from_cache

from gem_ds.checkpoints import run_record
from gem_ds.errors import InputError
from gem_ds.export import sentence_transformers_folder
from gem_ds.export.gem_config import GemConfig

FILE = "README.md"
# Flags that say where things were or how a start was made, not what was trained.
_OF_THE_MACHINE = ("shards", "output", "deepspeed", "model", "config", "local_rank", "resume")
_LICENCE = ("license", "license_name", "license_link")
_PAPER = "[arXiv 2506.04344](https://arxiv.org/abs/2506.04344)"

_GENERATE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = (x.from_pretrained("{model}") for x in (AutoModelForCausalLM, AutoTokenizer))
ids = model.generate(**tokenizer("Once upon a time", return_tensors="pt"), max_new_tokens=20)
print(tokenizer.decode(ids[0], skip_special_tokens=True))
```"""
_EMBED = """\
```python
from sentence_transformers import SentenceTransformer
embedder = SentenceTransformer("{embed}"{trust})
vectors = embedder.encode(["a text", "another text"])
print(embedder.similarity(vectors, vectors))
```"""
_ENCODE = """\
```python
from gem_ds.inference.encoder import Encoder
encoder = Encoder.from_pretrained("{root}")
vectors = encoder.encode(["a text", "another text"])
print(vectors @ vectors.T)
```"""


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from, as far as it is known."""

    flags: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    tokens: int | None = None
    licence: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)


def provenance(run: Path, step: int, base: str | None, scores: Path | None) -> Provenance:
    """What the folder of a run, its base and a file of scores say of the model after a step.

    Raises `InputError` for scores that are no JSON object.
    """
    told = run_record.read(run)
    flags = {name: x for name, x in told["config"].items() if name not in _OF_THE_MACHINE}
    return Provenance(
        flags, told["versions"], _tokens(run, step), _licence(base), _read_scores(scores)
    )


def _tokens(run: Path, step: int) -> int | None:
    """Tokens in the streams of the steps before `step`, padding left out."""
    path = run / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.is_file() else []
    tokens: dict[int, float] = {}
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):  # of a line that is no metrics
            m = json.loads(line)
            tokens[m["step"]] = m["data/tokens"] * (1 - m["data/padding"])
    steps = range(step)
    return round(sum(tokens[i] for i in steps)) if tokens.keys() >= set(steps) else None


def _licence(base: str | None) -> dict[str, str]:
    """What the card of the base says of its licence, where there is one on this machine."""
    if base is None:
        return {}
    path = Path(base) / FILE
    if not path.is_file():
        cached = None if Path(base).is_dir() else _cached(base)
        if cached is None:
            return {}
        path = cached
    told = metadata_load(path) or {}
    return {key: str(told[key]) for key in _LICENCE if told.get(key)}


def _cached(name: str) -> Path | None:
    try:
        found = try_to_load_from_cache(name, FILE)
    except ValueError:  # no name of a repository
        return None
    return Path(found) if isinstance(found, str) else None


def _read_scores(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        scores = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"--scores {path} cannot be read ({error}); give a JSON file") from error
    if not isinstance(scores, dict):
        raise InputError(f"--scores {path} is no JSON object of names and numbers; give one")
    return scores


def write(output: Path, gem: GemConfig, about: Provenance) -> None:
    """Write the card of an export and of each folder in it that a library loads."""
    name = output.name
    cards = {
        "": ("gem_ds", "text-generation", {"model": "model", "embed": "model-embed", "root": "."}),
        "model": ("transformers", "text-generation", {"model": "."}),
        sentence_transformers_folder.FOLDER: (
            "sentence-transformers",
            "sentence-similarity",
            {"embed": "."},
        ),
    }
    for folder, (library, task, paths) in cards.items():
        if (output / folder).is_dir():
            text = card(name, gem, about, library, task, paths)
            (output / folder / FILE).write_text(text, encoding="utf-8")


def card(
    name: str,
    gem: GemConfig,
    about: Provenance,
    library: str,
    task: str,
    paths: Mapping[str, str],
) -> str:
    """The card of one folder, from where `paths` lead to what examples load."""
    trust = "" if sentence_transformers_folder.is_stock(gem) else ", trust_remote_code=True"
    examples = {"model": _GENERATE}
    if gem.summary_tokens:
        examples |= {"embed": _EMBED, "root": _ENCODE}
    used = [
        text.format(**{key: paths[key]}, trust=trust)
        for key, text in examples.items()
        if key in paths
    ]
    parts = [
        f"---\n{_metadata(gem, about, library, task)}\n---",
        f"# {name}",
        _description(gem),
        "## Use",
        *used,
        "## Training",
        _table(_training(gem, about)),
        _flags(about),
    ]
    if about.scores:
        parts += ["## Scores", _table(dict(_flattened(about.scores)))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(gem: GemConfig, about: Provenance, library: str, task: str) -> str:
    hub = gem.base if _is_hub_name(gem.base) else None
    tags = ["gem", "text-generation"]
    if gem.summary_tokens:
        tags += ["feature-extraction", "sentence-similarity"]
    data = ModelCardData(
        library_name=library, base_model=hub, tags=tags, pipeline_tag=task, **about.licence
    )
    return str(data.to_yaml()).strip()


def _is_hub_name(base: str) -> bool:
    return base.count("/") == 1 and not base.startswith((".", "/", "~")) and not Path(base).exists()


def _description(gem: GemConfig) -> str:
    base = gem.base if _is_hub_name(gem.base) else Path(gem.base).name
    if not gem.summary_tokens:
        return f"A language model trained from {base} with gem_ds. It generates and cannot embed."
    k = len(gem.summary_tokens)
    text = (
        f"A language model made of {base} that both generates and embeds, by the GEM method "
        f"({_PAPER}). {k} summary token{'s stand' if k > 1 else ' stands'} behind a text that is "
        "to be embedded, and the embedding is made of the last hidden states there"
        f"{f' ({gem.aggregation})' if k > 1 else ''}."
    )
    if gem.adapter:
        text += (
            " The base is frozen, and an adapter (LoRA) is on at summary tokens alone: text "
            "without them has the base's logits."
        )
    if gem.dimensions:
        cuts = " or ".join(str(size) for size in gem.dimensions)
        text += f" Embeddings may be cut to their first {cuts} dimensions (`truncate_dim`)."
    return text


def _training(gem: GemConfig, about: Provenance) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "recipe": about.flags.get("recipe"),
        "steps": gem.step,
        "tokens seen": None if about.tokens is None else f"{about.tokens:,}",
        "share of the base averaged in": gem.base_share or None,
        "data manifest (sha256)": gem.manifest,
        "fingerprint": gem.fingerprint or None,
    }
    facts |= about.versions
    return {name: fact for name, fact in facts.items() if fact is not None}


def _flags(about: Provenance) -> str:
    if not about.flags:
        return ""
    told = json.dumps(dict(about.flags), indent=1)
    return f"<details><summary>All flags</summary>\n\n```json\n{told}\n```\n\n</details>"


def _table(facts: Mapping[str, Any]) -> str:
    lines = (f"| {name} | {fact} |" for name, fact in facts.items())
    return "\n".join(["| | |", "|---|---|", *lines])


def _flattened(scores: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(name, number or word) of whatever is nested, names joined by slashes."""
    if isinstance(scores, (dict, list)):
        items = scores.items() if isinstance(scores, dict) else enumerate(scores)
        for key, part in items:
            yield from _flattened(part, f"{name} / {key}" if name else str(key))
    else:
        yield name, f"{scores:.4g}" if isinstance(scores, float) else scores
