"""Writes the base of a case as a folder such as one downloads, and says what is wrong in it."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from bases_cases import ENCODERS, GENERATION, N_TOKENS, Case
from safetensors.torch import save_file
from tiny_families import randomize, tiny_config, tiny_model
from torch import Tensor, nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ORIGINAL = 32  # positions of a rope that has been stretched; rows have 128
ROW_LENGTH = 128
FEW = N_TOKENS - 10


@dataclass
class Cause:
    """Why a base may be refused, or `must` be: a refusal has one of these words in it."""

    what: str
    words: list[str]
    must: bool = False


@dataclass
class Base:
    """A base as it was written."""

    folder: Path
    causes: list[Cause] = field(default_factory=list)

    def blame(self, what: str, *words: str, must: bool = False) -> None:
        self.causes.append(Cause(what, [what, *words], must))


def write(case: Case, folder: Path, tokenizer: Path) -> Base:
    """Write the base of a case to a new folder."""
    rng = random.Random(case.seed)
    base = Base(folder)
    config = tiny_config(case.family, case.rows, pad=1)
    config.bos_token_id, config.eos_token_id = 0, 1
    silence(config)
    rope(case, config, base)
    untied = {"own head": True, "equal head": True, "no head": False}
    torch.manual_seed(case.seed)
    lm = _model(config, ties=untied.get(case.ties))
    _judge_family(case, lm, base)
    if "dropout" in case.faults:
        _drop(config, rng, base)
    lm.config.architectures = [type(lm).__name__]
    folder.mkdir(parents=True)
    lm.save_pretrained(folder, max_shard_size="100GB")
    tensors = _read(folder)
    told = json.loads((folder / "config.json").read_text())
    told |= {name: value for name, value in _json(config).items() if "drop" in name}
    head = _head(lm)
    _tie(case, lm, tensors, told, head, base)
    for fault in case.faults:
        _FAULTS.get(fault.partition(" ")[0] if "quantized" in fault else fault, _nothing)(
            case, fault, tensors, told, base, rng
        )
    _cast(case, tensors, told, rng)
    if case.old_spelling and "rope_type" in (told.get("rope_parameters") or {}):
        told["rope_scaling"] = told.pop("rope_parameters")
        told["rope_theta"] = told["rope_scaling"].pop("rope_theta", 10000.0)
        told["rope_scaling"]["type"] = told["rope_scaling"].pop("rope_type")
        if told["rope_scaling"]["type"] == "default":
            told["rope_scaling"] = None
    (folder / "config.json").write_text(json.dumps(told, indent=1))
    generation = GENERATION[case.generation]
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    _save(case, tensors, folder, base)
    for file in tokenizer.iterdir():
        shutil.copy(file, folder)
    return base


def silence(config: Any) -> None:
    """No dropout, whatever the family has by default."""
    for name in dropouts(config):
        setattr(config, name, 0.0)


def dropouts(config: Any) -> list[str]:
    """The names of a configuration's dropouts."""
    return [
        name
        for name, value in _json(config).items()
        if "drop" in name and isinstance(value, float | int) and not isinstance(value, bool)
    ]


def _json(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return found


def rope(case: Case, config: Any, base: Base) -> None:
    """Give a configuration the rope of the case, where its family has one of one kind."""
    given = getattr(config, "rope_parameters", None)
    if case.rope == "as the family" or not given or "rope_theta" not in given:
        return
    head = getattr(config, "qk_rope_head_dim", None) or getattr(config, "head_dim", None)
    head = head or config.hidden_size // config.num_attention_heads
    half = int(head * given.get("partial_rotary_factor", 1.0)) // 2
    about: dict[str, dict[str, Any]] = {
        "linear": {"factor": 4.0},
        "dynamic": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL},
        "yarn": {"factor": 8.0, "original_max_position_embeddings": ORIGINAL},
        "llama3": {
            "factor": 8.0,
            "original_max_position_embeddings": ORIGINAL,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
        "longrope": {
            "short_factor": [1.0] * half,
            "long_factor": [1.0 + 2 * i for i in range(half)],
            "original_max_position_embeddings": ORIGINAL,
        },
    }
    of_kind = ("type", "factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow", "truncate")
    kept = {key: value for key, value in given.items() if key not in of_kind}
    told = _json(config) | {"rope_parameters": {**kept, "rope_type": case.rope, **about[case.rope]}}
    told["original_max_position_embeddings"] = ORIGINAL
    try:
        type(config).from_dict(told)
    except Exception:  # a family that knows no such rope
        return
    config.rope_parameters = told["rope_parameters"]
    config.original_max_position_embeddings = ORIGINAL
    if case.rope in ("dynamic", "longrope"):
        base.blame(case.rope, "rope")


def _model(config: Any, ties: bool | None) -> Any:
    if ties is not None:
        config.tie_word_embeddings = not ties
    lm = tiny_model(config)
    randomize(lm)
    return lm


def _judge_family(case: Case, lm: Any, base: Base) -> None:
    """What of a family may be refused though nothing is wrong in its files."""
    name = type(lm).__name__
    text = lm.config.get_text_config().model_type
    known = [case.family, text, name, name.split("For")[0].split("LM")[0]]
    if case.family in ENCODERS:
        words = ("encoder", "is_decoder", "direction", "does not generate")
        base.blame("encoder", *words, must=True)
    elif not case.exact:
        base.blame("family", *known)
    if not _head_is_linear(lm):
        base.blame("head", "logit", "head", *known)
    if case.recipe == "lossless" and not _takes_adapters(lm):
        base.blame("adapter")


@torch.no_grad()
def _takes_adapters(lm: Any) -> bool:
    """Whether all matrices of the layers are linear and see the stream of tokens as it is."""
    shapes = []
    for name, module in lm.base_model.named_modules():
        own = [p for p in module.parameters(recurse=False) if p.ndim > 1]
        if own and not isinstance(module, nn.Embedding):
            if not isinstance(module, nn.Linear) or "experts" in name:
                return False
            module.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape[:-1]))
    ids = torch.arange(3, 30)[None]
    try:
        lm(input_ids=ids, use_cache=False)
    except Exception:
        return False
    for module in lm.modules():
        module._forward_pre_hooks.clear()
    return all(shape == ids.shape for shape in shapes)


@torch.no_grad()
def _head_is_linear(lm: Any) -> bool:
    """Whether logits are the output embedding of the last hidden states, capped perhaps."""
    ids = torch.arange(3, 30)[None]
    try:
        hidden = lm.base_model(input_ids=ids, use_cache=False)[0]
        logits = lm(input_ids=ids, use_cache=False).logits
        plain = lm.get_output_embeddings()(hidden)
    except Exception:
        return False
    cap = getattr(lm.config.get_text_config(), "final_logit_softcapping", None)
    plain = torch.tanh(plain / cap) * cap if cap else plain
    return plain.shape == logits.shape and torch.allclose(plain, logits, atol=1e-4)


def _head(lm: Any) -> str:
    """The name of the output embedding's weight."""
    head = lm.get_output_embeddings()
    return next(n for n, module in lm.named_modules() if module is head) + ".weight"


def _tie(
    case: Case, lm: Any, tensors: dict[str, Tensor], told: dict[str, Any], head: str, base: Base
) -> None:
    if case.ties == "as the family":
        return
    if case.ties == "no head":  # a tied model, whose configuration says that it is none
        told["tie_word_embeddings"] = False
        tensors.pop(head, None)
        base.blame(head, "tie_word_embeddings", must=True)
        return
    told["tie_word_embeddings"] = True
    embedding = lm.get_input_embeddings().weight
    if case.ties == "equal head" and head in tensors and tensors[head].shape == embedding.shape:
        tensors[head] = embedding.detach().clone()
    elif head in tensors:
        base.blame(head, "tie_word_embeddings")


def _nothing(*_: Any) -> None:
    pass


def _matrix(tensors: dict[str, Tensor], rng: random.Random) -> str:
    return rng.choice(sorted(name for name, tensor in tensors.items() if tensor.ndim > 1))


def _words_of(name: str) -> list[str]:
    """A tensor may be told by its name, that of the module it is a part of in memory, or both."""
    parts = name.split(".")
    cut = next((i for i, part in enumerate(parts) if "expert" in part), len(parts) - 1)
    return [name, ".".join(parts[: cut + 1]), *([".".join(parts[1:])] if len(parts) > 2 else [])]


def _missing(case: Case, fault: str, tensors: Any, told: Any, base: Base, rng: Any) -> None:
    name = rng.choice(sorted(tensors))
    del tensors[name]
    base.blame(fault, *_words_of(name), must=True)


def _misshaped(case: Case, fault: str, tensors: Any, told: Any, base: Base, rng: Any) -> None:
    name = _matrix(tensors, rng)
    tensors[name] = tensors[name][:-1].contiguous()
    base.blame(fault, *_words_of(name), must=True)


def _not_finite(case: Case, fault: str, tensors: Any, told: Any, base: Base, rng: Any) -> None:
    name = _matrix(tensors, rng)
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[rng.randrange(tensors[name].numel())] = (
        float("nan") if "NaN" in fault else float("inf")
    )
    base.blame(fault, "nan", "finite", "infinite", *_words_of(name), must=True)


def _surplus(case: Case, fault: str, tensors: Any, told: Any, base: Base, rng: Any) -> None:
    place = rng.choice(sorted(tensors)).rpartition(".")[0]
    tensors[f"{place}.surplus.weight"] = torch.randn(8, 8)
    base.blame(fault, f"{place}.surplus")


def _old_buffer(case: Case, fault: str, tensors: Any, told: Any, base: Base, rng: Any) -> None:
    """What older Transformers kept in files."""
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    base.blame(fault, "rotary_emb.inv_freq")


def _another_layer(case: Case, fault: str, tensors: Any, told: Any, base: Base, rng: Any) -> None:
    """As models with layers for predicting several tokens have them."""
    places = [n for n in tensors if ".layers.1." in n]
    for name in places:
        tensors[name.replace(".layers.1.", ".layers.77.")] = tensors[name].clone()
    if places:
        base.blame(fault, "layers.77.", "num_hidden_layers")


def _drop(config: Any, rng: random.Random, base: Base) -> None:
    """Switch dropout on under one of the family's names, and see whether anything is dropped."""
    names = dropouts(config)
    if not names:
        return
    name = rng.choice(names)
    setattr(config, name, 0.3)
    if drops(config):
        base.blame("dropout", "drop", name)


@torch.no_grad()
def drops(config: Any) -> bool:
    """Whether a model of this configuration computes by chance in training."""
    lm = tiny_model(config).train()
    ids = torch.arange(3, 40)[None]
    found = []
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        found.append(lm(input_ids=ids, use_cache=False).logits)
    return not all(torch.equal(found[0], other) for other in found[1:])


def _adapter(case: Case, fault: str, tensors: Any, told: Any, base: Base, rng: Any) -> None:
    names = [n for n in tensors if n.endswith(("q_proj.weight", "o_proj.weight", "dense.weight"))]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": sorted({name.split(".")[-2] for name in names}) or ["q_proj"],
        "base_model_name_or_path": str(base.folder),
    }
    (base.folder / "adapter_config.json").write_text(json.dumps(config))
    lora = {}
    for name in names:
        about = f"base_model.model.{name.removesuffix('.weight')}"
        lora[f"{about}.lora_A.weight"] = torch.randn(4, tensors[name].shape[1])
        lora[f"{about}.lora_B.weight"] = torch.randn(tensors[name].shape[0], 4)
    save_file(lora, base.folder / "adapter_model.safetensors", metadata={"format": "pt"})
    base.blame("adapter")


def _quantized(case: Case, fault: str, tensors: Any, told: Any, base: Base, rng: Any) -> None:
    told["quantization_config"] = {
        "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False},
        "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"},
        "bitsandbytes 4": {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "bitsandbytes 8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
        "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
        "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    }[fault.removeprefix("quantized ")]
    base.blame(fault, "quantiz", must=True)


def _classifier(case: Case, fault: str, tensors: Any, told: Any, base: Base, rng: Any) -> None:
    """A head of two labels in the place of the language model's."""
    (name,) = told["architectures"]
    told["architectures"] = [name.split("For")[0].split("LM")[0] + "ForSequenceClassification"]
    told["id2label"] = {"0": "no", "1": "yes"}
    for head in [n for n in tensors if n.startswith(("lm_head", "output_projection", "cls"))]:
        del tensors[head]
        base.blame(head, must=not told.get("tie_word_embeddings"))
    tensors["score.weight"] = torch.randn(2, 64)
    base.blame(fault, "ForSequenceClassification", "score.weight", "lm_head", "architectures")


def _bare(case: Case, fault: str, tensors: Any, told: Any, base: Base, rng: Any) -> None:
    """The model without a head, as its family's ``…Model`` saves it."""
    (name,) = told["architectures"]
    told["architectures"] = [name.split("For")[0].split("LM")[0] + "Model"]
    for old in list(tensors):
        prefix, _, rest = old.partition(".")
        tensor = tensors.pop(old)
        if prefix in ("model", "transformer", "gpt_neox"):
            tensors[rest] = tensor
        else:
            base.blame(old)
    base.blame(fault, told["architectures"][0], "lm_head", "head", "architectures")


def _encoder_named(case: Case, fault: str, tensors: Any, told: Any, base: Base, rng: Any) -> None:
    told["architectures"] = ["BertForMaskedLM"]
    base.blame(fault, "BertForMaskedLM", "architectures", "encoder")


def _no_architecture(case: Case, fault: str, tensors: Any, told: Any, base: Base, rng: Any) -> None:
    told.pop("architectures")


def _few_rows(case: Case, fault: str, tensors: Any, told: Any, base: Base, rng: Any) -> None:
    """The tokenizer has more tokens than the embedding rows, as of a padding token added later."""
    if told["vocab_size"] != N_TOKENS:
        return
    told["vocab_size"] = FEW
    for name, tensor in list(tensors.items()):
        if tensor.shape[0] == N_TOKENS:
            tensors[name] = tensor[:FEW].contiguous()
    base.blame(fault, "vocab", "embedding", "rows", "tokens")


def _unknown(case: Case, fault: str, tensors: Any, told: Any, base: Base, rng: Any) -> None:
    told["model_type"] = "nosuch"
    base.blame(fault, "nosuch", must=True)


_FAULTS: dict[str, Callable[..., None]] = {
    "missing tensor": _missing,
    "misshaped tensor": _misshaped,
    "NaN tensor": _not_finite,
    "infinite tensor": _not_finite,
    "surplus tensor": _surplus,
    "old buffer": _old_buffer,
    "another layer": _another_layer,
    "adapter beside": _adapter,
    "quantized": _quantized,
    "classifier": _classifier,
    "bare model": _bare,
    "encoder named": _encoder_named,
    "no architecture": _no_architecture,
    "few rows": _few_rows,
    "unknown family": _unknown,
}


def _cast(case: Case, tensors: dict[str, Tensor], told: dict[str, Any], rng: random.Random) -> None:
    mixed = dict.fromkeys(tensors, case.dtype)
    if case.dtype == "mixed":
        of_shape = {t.shape: rng.choice(list(DTYPES)) for t in tensors.values()}
        mixed = {name: of_shape[tensor.shape] for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = tensor.to(DTYPES[mixed[name]])
    told.pop("torch_dtype", None)
    told["dtype"] = case.said_dtype or (case.dtype if case.dtype in DTYPES else "bfloat16")


def _read(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
        path.unlink()
    return tensors


def _save(case: Case, tensors: dict[str, Tensor], folder: Path, base: Base) -> None:
    if "no weights" in case.faults:
        base.blame("no weights", "safetensors", "pytorch_model", "weights", must=True)
        return
    stem, suffix = ("pytorch_model", ".bin") if "bin" in case.layout else ("model", ".safetensors")
    names = sorted(tensors)
    n = 3 if "sharded" in case.layout else 1
    parts = [names[i::n] for i in range(n)]
    files = (
        [f"{stem}-{i + 1:05d}-of-{n:05d}{suffix}" for i in range(n)] if n > 1 else [stem + suffix]
    )
    for file, part in zip(files, parts, strict=True):
        shard = {name: tensors[name].clone().contiguous() for name in part}
        if suffix == ".bin":
            torch.save(shard, folder / file)
        else:
            save_file(shard, folder / file, metadata={"format": "pt"})
    if n > 1:
        where = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        index = {"metadata": {"total_size": 0}, "weight_map": where}
        (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index))
    last = folder / files[-1]
    if "file gone" in case.faults:
        last.unlink()
        base.blame("file gone", last.name, stem + suffix, must=True)
    elif "file cut short" in case.faults:
        last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
        base.blame("file cut short", last.name, "deserializ", "incomplete", "damaged", must=True)
