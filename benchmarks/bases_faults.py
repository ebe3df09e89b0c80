"""The faults that the fuzzing puts into the files of a base, such as those of people have."""

import json
from collections.abc import Callable

import torch
from bases_cases import N_TOKENS
from bases_causes import Base
from safetensors.torch import save_file

FEW = N_TOKENS - 10


def put_in(base: Base, fault: str) -> None:
    """Put a fault into the tensors or the configuration of a base; others are of its files."""
    kind = "quantized" if fault.startswith("quantized") else fault
    if kind in _FAULTS:
        _FAULTS[kind](base, fault)
    if all(bool(t.isfinite().all()) for t in base.tensors.values() if t.is_floating_point()):
        for cause in base.causes:  # another fault has taken that tensor out
            cause.must = cause.must and "finite" not in cause.words


def _matrix(base: Base) -> str:
    return base.rng.choice(sorted(name for name, tensor in base.tensors.items() if tensor.ndim > 1))


def _words_of(name: str) -> list[str]:
    """A tensor may be told by its name, that of the module it is a part of in memory, or both."""
    parts = name.split(".")
    cut = next((i for i, part in enumerate(parts) if "expert" in part), len(parts) - 1)
    return [name, ".".join(parts[: cut + 1]), *([".".join(parts[1:])] if len(parts) > 2 else [])]


def _missing(base: Base, fault: str) -> None:
    name = base.rng.choice(sorted(base.tensors))
    del base.tensors[name]
    base.blame(fault, *_words_of(name), must=True)


def _misshaped(base: Base, fault: str) -> None:
    name = _matrix(base)
    base.tensors[name] = base.tensors[name][:-1].contiguous()
    base.blame(fault, *_words_of(name), must=True)


def _not_finite(base: Base, fault: str) -> None:
    name = _matrix(base)
    base.tensors[name] = base.tensors[name].clone()
    base.tensors[name].view(-1)[base.rng.randrange(base.tensors[name].numel())] = (
        float("nan") if "NaN" in fault else float("inf")
    )
    base.blame(fault, "nan", "finite", "infinite", *_words_of(name), must=True)


def _surplus(base: Base, fault: str) -> None:
    place = base.rng.choice(sorted(base.tensors)).rpartition(".")[0]
    base.tensors[f"{place}.surplus.weight"] = torch.randn(8, 8)
    base.blame(fault, f"{place}.surplus")


def _old_buffer(base: Base, fault: str) -> None:
    """What older Transformers kept in files."""
    base.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    base.blame(fault, "rotary_emb.inv_freq")


def _another_layer(base: Base, fault: str) -> None:
    """As models with layers for predicting several tokens have them."""
    places = [n for n in base.tensors if ".layers.1." in n]
    for name in places:
        base.tensors[name.replace(".layers.1.", ".layers.77.")] = base.tensors[name].clone()
    if places:
        base.blame(fault, "layers.77.", "num_hidden_layers")


def _adapter(base: Base, fault: str) -> None:
    ends = ("q_proj.weight", "o_proj.weight", "dense.weight")
    names = [name for name, x in base.tensors.items() if name.endswith(ends) and x.ndim == 2]
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
        lora[f"{about}.lora_A.weight"] = torch.randn(4, base.tensors[name].shape[1])
        lora[f"{about}.lora_B.weight"] = torch.randn(base.tensors[name].shape[0], 4)
    save_file(lora, base.folder / "adapter_model.safetensors", metadata={"format": "pt"})
    base.blame("adapter")


def _quantized(base: Base, fault: str) -> None:
    base.told["quantization_config"] = {
        "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False},
        "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"},
        "bitsandbytes 4": {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "bitsandbytes 8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
        "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
        "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    }[fault.removeprefix("quantized ")]
    base.blame(fault, "quantiz", must=True)


def _classifier(base: Base, fault: str) -> None:
    """A head of two labels in the place of the language model's."""
    (name,) = base.told["architectures"]
    base.told["architectures"] = [name.split("For")[0].split("LM")[0] + "ForSequenceClassification"]
    base.told["id2label"] = {"0": "no", "1": "yes"}
    for head in [n for n in base.tensors if n.startswith(("lm_head", "output_projection", "cls"))]:
        del base.tensors[head]
        base.blame(head, must=not base.told.get("tie_word_embeddings"))
    base.tensors["score.weight"] = torch.randn(2, 64)
    base.blame(fault, "ForSequenceClassification", "score.weight", "lm_head", "architectures")


def _bare(base: Base, fault: str) -> None:
    """The model without a head, as its family's ``…Model`` saves it."""
    (name,) = base.told["architectures"]
    base.told["architectures"] = [name.split("For")[0].split("LM")[0] + "Model"]
    for old in list(base.tensors):
        prefix, _, rest = old.partition(".")
        tensor = base.tensors.pop(old)
        if prefix in ("model", "transformer", "gpt_neox"):
            base.tensors[rest] = tensor
        else:
            base.blame(old)
    base.blame(fault, base.told["architectures"][0], "lm_head", "head", "architectures")


def _encoder_named(base: Base, fault: str) -> None:
    base.told["architectures"] = ["BertForMaskedLM"]
    base.blame(fault, "BertForMaskedLM", "architectures", "encoder")


def _no_architecture(base: Base, fault: str) -> None:
    base.told.pop("architectures")


def _few_rows(base: Base, fault: str) -> None:
    """The tokenizer has more tokens than the embedding rows, as of a padding token added later."""
    if base.told["vocab_size"] != N_TOKENS:
        return
    base.told["vocab_size"] = FEW
    for name, tensor in list(base.tensors.items()):
        if tensor.shape[0] == N_TOKENS:
            base.tensors[name] = tensor[:FEW].contiguous()
    base.blame(fault, "vocab", "embedding", "rows", "tokens")


def _unknown(base: Base, fault: str) -> None:
    base.told["model_type"] = "nosuch"
    base.blame(fault, "nosuch", must=True)


_FAULTS: dict[str, Callable[[Base, str], None]] = {
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
