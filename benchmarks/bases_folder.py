"""Writes the base of a case as a folder such as one downloads, and says what is wrong in it."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from bases_cases import GENERATION, Case
from bases_causes import Base, drops, judge_family
from bases_faults import put_in
from safetensors.torch import load_file, save_file
from tiny_families import dropouts, entries, randomize, silence, tiny_config, tiny_model
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ORIGINAL = 32  # positions of a rope that has been stretched; rows have 128
ROW_LENGTH = 128


def write(case: Case, folder: Path, tokenizer: Path) -> Base:
    """Write the base of a case to a new folder."""
    base = Base(folder, random.Random(case.seed))
    config = tiny_config(case.family, case.rows, pad=1)
    config.bos_token_id, config.eos_token_id = 0, 1
    silence(config)
    rope(case, config, base)
    untied = {"own head": True, "equal head": True, "no head": False}
    torch.manual_seed(case.seed)
    lm = _model(config, ties=untied.get(case.ties))
    judge_family(case, lm, base)
    if "dropout" in case.faults:
        _drop(config, base)
    lm.config.architectures = [type(lm).__name__]
    folder.mkdir(parents=True)
    lm.save_pretrained(folder, max_shard_size="100GB")
    base.tensors = _read(folder)
    base.told = json.loads((folder / "config.json").read_text())
    base.told |= {name: value for name, value in entries(config).items() if "drop" in name}
    _tie(case, lm, base)
    for fault in case.faults:
        put_in(base, fault)
    _cast(case, base)
    if case.old_spelling:
        _spell_as_before(base.told)
    (folder / "config.json").write_text(json.dumps(base.told, indent=1))
    generation = GENERATION[case.generation]
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    _save(case, base)
    for file in tokenizer.iterdir():
        shutil.copy(file, folder)
    return base


def _drop(config: Any, base: Base) -> None:
    """Switch dropout on under one of the family's names, and see whether anything is dropped."""
    names = dropouts(config)
    if not names:
        return
    name = base.rng.choice(names)
    setattr(config, name, 0.3)
    if drops(config):
        base.blame("dropout", "drop", name, must=True)


def rope(case: Case, config: Any, base: Base) -> None:
    """Give a configuration the rope of the case, where its family has one of one kind."""
    given = getattr(config, "rope_parameters", None)
    if case.rope == "as the family" or not given or "rope_theta" not in given:
        return
    head = getattr(config, "qk_rope_head_dim", None) or getattr(config, "head_dim", None)
    head = head or config.hidden_size // config.num_attention_heads
    original = ROW_LENGTH if case.rope == "longer rope" else ORIGINAL
    kind = "longrope" if case.rope == "longer rope" else case.rope
    half = int(head * given.get("partial_rotary_factor", 1.0)) // 2
    about: dict[str, dict[str, Any]] = {
        "linear": {"factor": 4.0},
        "dynamic": {"factor": 4.0, "original_max_position_embeddings": original},
        "yarn": {"factor": 8.0, "original_max_position_embeddings": original},
        "llama3": {
            "factor": 8.0,
            "original_max_position_embeddings": original,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
        "longrope": {
            "short_factor": [1.0] * half,
            "long_factor": [1.0 + 2 * i for i in range(half)],
            "original_max_position_embeddings": original,
        },
    }
    of_kind = ("type", "factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow", "truncate")
    kept = {key: value for key, value in given.items() if key not in of_kind}
    told = entries(config) | {"rope_parameters": {**kept, "rope_type": kind, **about[kind]}}
    told["original_max_position_embeddings"] = original
    try:
        type(config).from_dict(told)
    except Exception:  # a family that knows no such rope
        return
    config.rope_parameters = told["rope_parameters"]
    config.original_max_position_embeddings = original
    if case.rope in ("dynamic", "longrope"):
        base.blame(case.rope, "rope", "a document of")


def _model(config: Any, ties: bool | None) -> Any:
    if ties is not None:
        config.tie_word_embeddings = not ties
    lm = tiny_model(config)
    randomize(lm)
    return lm


def _tie(case: Case, lm: Any, base: Base) -> None:
    """Make flag and files say what the case wants of the output embedding."""
    if case.ties == "as the family":
        return
    output, embedding = lm.get_output_embeddings(), lm.get_input_embeddings().weight
    head = next(name for name, module in lm.named_modules() if module is output) + ".weight"
    base.told["tie_word_embeddings"] = case.ties != "no head"
    if case.ties == "no head":  # a tied model, whose configuration says that it is none
        base.tensors.pop(head, None)
        base.blame(head, "tie_word_embeddings", must=True)
    elif head in base.tensors:
        if case.ties == "equal head" and base.tensors[head].shape == embedding.shape:
            base.tensors[head] = embedding.detach().clone()
        else:
            base.blame(head, "tie_word_embeddings")


def _spell_as_before(told: dict[str, Any]) -> None:
    """``rope_theta`` and ``rope_scaling``, as before Transformers 5."""
    if "rope_type" not in (told.get("rope_parameters") or {}):
        return
    scaling = told.pop("rope_parameters")
    told["rope_theta"] = scaling.pop("rope_theta", 10000.0)
    kind = scaling.pop("rope_type")
    told["rope_scaling"] = None if kind == "default" else {**scaling, "type": kind}


def _cast(case: Case, base: Base) -> None:
    of_tensor = dict.fromkeys(base.tensors, case.dtype)
    if case.dtype == "mixed":  # the same for a shape, so that equal tensors stay so
        of_shape = {t.shape: base.rng.choice(list(DTYPES)) for t in base.tensors.values()}
        of_tensor = {name: of_shape[tensor.shape] for name, tensor in base.tensors.items()}
    for name, tensor in base.tensors.items():
        if tensor.is_floating_point():
            base.tensors[name] = tensor.to(DTYPES[of_tensor[name]])
    base.told.pop("torch_dtype", None)
    base.told["dtype"] = case.said_dtype or (case.dtype if case.dtype in DTYPES else "bfloat16")


def _read(folder: Path) -> dict[str, Tensor]:
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
        path.unlink()
    return tensors


def _save(case: Case, base: Base) -> None:
    if "no weights" in case.faults:
        base.blame("no weights", "safetensors", "pytorch_model", "weights", must=True)
        return
    stem, suffix = ("pytorch_model", ".bin") if "bin" in case.layout else ("model", ".safetensors")
    names = sorted(base.tensors)
    n = 3 if "sharded" in case.layout else 1
    parts = [names[i::n] for i in range(n)]
    files = (
        [f"{stem}-{i + 1:05d}-of-{n:05d}{suffix}" for i in range(n)] if n > 1 else [stem + suffix]
    )
    for file, part in zip(files, parts, strict=True):
        shard = {name: base.tensors[name].clone().contiguous() for name in part}
        if suffix == ".bin":
            torch.save(shard, base.folder / file)
        else:
            save_file(shard, base.folder / file, metadata={"format": "pt"})
    if n > 1:
        where = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        index = {"metadata": {"total_size": 0}, "weight_map": where}
        (base.folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index))
    last = base.folder / files[-1]
    if "file gone" in case.faults:
        last.unlink()
        base.blame("file gone", last.name, stem + suffix, must=True)
    elif "file cut short" in case.faults:
        last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
        base.blame("file cut short", last.name, "deserializ", "incomplete", "damaged", must=True)
