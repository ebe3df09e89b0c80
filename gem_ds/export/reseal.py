"""Exports that somebody changed on purpose: looked at, sealed again, or verified whole."""

import json
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import safe_open

from gem_ds import files
from gem_ds.corpus import tokenization
from gem_ds.errors import InputError
from gem_ds.export import gem_embedding, gem_seal, sealing, sentence_transformers_folder
from gem_ds.export.gem_config import GEM_CONFIG, GIVE, GemConfig, check_seal, read_gem_config
from gem_ds.export.sentence_transformers_folder import write_json
from gem_ds.model import adapter_files, base_model

PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_MODULES = "modules.json"  # of a folder that SentenceTransformers loads


def verify(folder: Path) -> list[str]:
    """Compare all hashes of the seals in an export, or a folder of one; what was verified.

    Raises `InputError` for the first file that differs, and where nothing is sealed.
    """
    files.check_path(folder, GIVE)
    parts = [folder, folder / "model", folder / sentence_transformers_folder.FOLDER]
    sealed = [part for part in parts if (part / gem_seal.SEAL).exists()]
    if not sealed:
        raise InputError(f"{folder} has no {gem_seal.SEAL}; {GIVE}, or {gem_seal.RESEAL} {folder}")
    lines = []
    for part in sealed:
        check_seal(part, whole=True)
        told = gem_seal.read(part).values()
        size = sum(entry["bytes"] for entry in told) / 1e6
        lines.append(f"{part} verified: {len(told)} files, {size:,.1f} MB")
    return lines


def reseal(folder: Path) -> list[str]:
    """Seal an export as it is now; what has changed since the last seal.

    Of an export ``model-embed/`` gets what it shares with ``model/`` and ``adapter/``, and is made
    again where it is missing. A ``model-embed/`` may be sealed alone, and so may a ``model/`` that
    is in no export. Raises `InputError` for files that make no model, and where those of
    ``model-embed/`` were changed otherwise than those of ``model/``.
    """
    files.check_path(folder, GIVE)
    if (folder.parent / _MODULES).is_file() or (folder.parent / "model" / GEM_CONFIG).is_file():
        folder = folder if (folder / _MODULES).is_file() else folder.parent
    known: sealing.Known = {}
    if (folder / _MODULES).is_file():
        return _embed(folder, known)
    in_export = (folder / "model").is_dir()
    model = folder / "model" if in_export else folder
    gem = read_gem_config(model)
    _check(model, gem)
    embed = folder / sentence_transformers_folder.FOLDER
    if in_export and embed.is_dir():
        _check_shared(folder, gem)
    before = _sealed(model)
    now = sealing.seal_model(model, gem, known)
    lines = _changes(model, before)
    if gem.fingerprint != now.fingerprint:
        lines.append(f"{model}: memories made before are another model's")
        for card in folder.glob("**/README.md"):
            text = card.read_text(encoding="utf-8")
            card.write_text(text.replace(gem.fingerprint or "\0", now.fingerprint), "utf-8")
    if not in_export:
        return lines
    if embed.is_dir():
        sentence_transformers_folder.share(folder, now)
    else:
        sentence_transformers_folder.write(folder, tokenization.load(model), now)
    return lines + (_embed(embed, known) if embed.is_dir() else [])


def _embed(folder: Path, known: sealing.Known) -> list[str]:
    before = _sealed(folder)
    _check_weights(folder, *(path for path in folder.iterdir() if path.is_dir()))
    settings = folder / gem_embedding.SETTINGS
    if settings.is_file():
        sentence_transformers_folder.carry_code(folder)
        try:
            write_json(settings, {**json.loads(settings.read_text()), "sealed": True})
        except (ValueError, TypeError) as error:
            raise InputError(f"{settings} is damaged ({error}); copy it again") from error
    sealing.seal_embed(folder, known)
    return _changes(folder, before)


def _check(model: Path, gem: GemConfig) -> None:
    """Refuse a ``model/`` that would not load, or not together with its adapter and tokenizer."""
    adapter = model.parent / adapter_files.FOLDER
    _check_weights(model, *([adapter] if gem.adapter else []))
    base_model.check_files(model, base_model.read_config(model))
    vocab = tokenization.load(model)
    found = tuple(tokenization.summary_ids(vocab))
    if found != gem.summary_tokens:
        raise InputError(
            f"{vocab.source} has the summary tokens {list(found)} in its tokenizer and "
            f"{list(gem.summary_tokens)} in {GEM_CONFIG}; take both from the same export"
        )


def _check_shared(export: Path, gem: GemConfig) -> None:
    """Refuse to replace what somebody has changed in ``model-embed/`` alone."""
    embed = export / sentence_transformers_folder.FOLDER
    with suppress(ValueError):
        gem_seal.check(embed, whole=True)
        return
    for theirs, ours in sentence_transformers_folder.shared(export, gem).items():
        if ours.name == gem_seal.SEAL:
            continue
        if not theirs.is_file() or files.sha256(theirs) != files.sha256(ours):
            raise InputError(
                f"{theirs} is not the same as {ours}; seal {embed} alone with {gem_seal.RESEAL} "
                f"{embed}, or remove it, and it is made again"
            )


def _sealed(folder: Path) -> dict[str, str]:
    """The hashes of a folder's seal; of a damaged one, or without one, none."""
    try:
        return {name: entry["sha256"] for name, entry in gem_seal.read(folder).items()}
    except ValueError:
        return {}


def _changes(folder: Path, before: dict[str, str]) -> list[str]:
    now = _sealed(folder)
    lines = [
        f"{'changed' if before.get(name) and now.get(name) else 'added' if name in now else 'gone'}"
        f" {name}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if not before:
        lines = [f"{len(now)} files, which had no seal"]
    return [f"{folder}: {line}" for line in lines or ["nothing has changed"]]


def _check_weights(*folders: Path) -> None:
    """Refuse pickled files, and values that are not finite."""
    for path in (path for folder in folders for path in sorted(folder.glob("*"))):
        if path.suffix in PICKLED:
            raise InputError(f"{path} is pickled, which may run code; save it as safetensors")
        if path.suffix != gem_seal.WEIGHTS:
            continue
        try:
            with safe_open(path, "pt") as file:
                bad = next((n for n in file.keys() if _is_bad(file.get_tensor(n))), None)  # noqa: SIM118
        except Exception as error:
            raise InputError(f"{path} is damaged ({error}); save it again") from error
        if bad:
            raise InputError(f"{path} has values that are not finite in {bad}; save it again")


def _is_bad(tensor: torch.Tensor) -> bool:
    return not bool(tensor.isfinite().all())
