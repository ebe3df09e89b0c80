"""A model as its files have it: configuration and weights, read whole or refused.

`read_config` and `check_files` look at the files alone; `load` gives the Transformers model. What
the model computes is tried by `attention.compatibility`.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import ADAPTER_CONFIG_NAME, logging
from transformers.utils.hub import cached_file

from gem_ds import distributed, files
from gem_ds.errors import InputError, reason

FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors names types
GIVE = "give a folder with a model, or a name on the hub"
NAMED = 3  # tensors that a message names


def read_config(name: str | Path) -> Any:
    """The Transformers configuration of a folder, a config file or a hub name.

    Raises `InputError` for what is no configuration, or one of a model that cannot be trained from.
    """
    files.check_path(name, GIVE)
    if _file(name, ADAPTER_CONFIG_NAME) is not None:
        raise InputError(
            f"{name} has an {ADAPTER_CONFIG_NAME}: it is or contains a LoRA adapter; merge that "
            "into its base first (peft's merge_and_unload, then save_pretrained), or remove it"
        )
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # of a damaged file, an unknown family, the hub: of any kind
        raise InputError(
            f"cannot read the model configuration of {name}: {reason(error)}"
        ) from error
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"{name} is an encoder-decoder ({config.model_type}); choose a decoder-only base"
        )
    for part in (config, config.get_text_config()):
        entry = getattr(part, "quantization_config", None)
        if entry:
            method = entry.get("quant_method") if isinstance(entry, dict) else entry
            raise InputError(
                f"{name} is quantized (quantization_config: {method or 'of no method'}), and that "
                "cannot be trained from; take the unquantized model"
            )
    return config


def check_files(name: str | Path, config: Any) -> list[str]:
    """Compare a base's weight files with the model of its configuration, without reading weights.

    A head that the files have beside the embedding it is said to be tied to is kept: `config` is
    changed to say so. Returns what is worth telling. Raises `InputError` for tensors that are
    missing, of another shape, or quantized. Call it outside of a live ``HfDeepSpeedConfig``.
    """
    notes = []
    files = tensor_files(name)
    quantized = {tensor: kind for tensor, kind in _types(files) if kind not in FLOATS}
    if quantized:
        raise InputError(
            f"{name} stores weights as {', '.join(sorted(set(quantized.values())))} "
            f"({_some(quantized)}), so it is quantized; take the unquantized model"
        )
    pickled = {} if files else _pickled(name)
    if _has_own_head(config, files, pickled):
        for part in (config, config.get_text_config()):
            part.tie_word_embeddings = False
        notes.append(
            f"{name} says tie_word_embeddings, but its files have a head that differs from the "
            "embedding; both are kept, as Transformers does"
        )
    try:
        _, info = _load(name, config, device_map="meta")
    except InputError as error:  # where tensors are put together, Transformers does not name them
        lost = _lost(config, files) if "conversion" in str(error.__cause__) else ()
        if lost:
            raise InputError(
                f"{name} lacks {_some(lost)}, so it cannot be trained from; get it again, or "
                "choose another base"
            ) from error
        raise
    surplus = info["unexpected_keys"]
    if surplus:
        notes.append(f"{name} has tensors that are not used: {_some(surplus)}")
    return notes


def load(name: str | Path, dtype: torch.dtype | str, config: Any = None) -> Any:
    """The causal language model of a folder or hub name, with stock attention, on the CPU.

    `config` takes the place of its configuration. Under ZeRO-3 (a live ``HfDeepSpeedConfig``) no
    rank ever holds the whole model, and all ranks call. Raises `InputError` for files that do not
    make this model, and for weights that are NaN or infinite.
    """
    lm, _ = _load(name, config, dtype=dtype)
    damaged = {tensor for found in distributed.gather(not_finite(lm)) for tensor in found}
    if damaged:
        raise InputError(
            f"{name} has values that are not finite (NaN or infinite) in {_some(damaged)}; get it "
            "again, or choose another"
        )
    return lm


def not_finite(lm: Any) -> list[str]:
    """The weights with values that are NaN or infinite, in what this rank has of them."""
    parts = ((name, getattr(p, "ds_tensor", p).detach()) for name, p in lm.named_parameters())
    # A sum of any such value is none that is finite, and is much faster than asking each.
    return [n for n, x in parts if not x.sum().isfinite() and not x.isfinite().all()]


def _load(name: str | Path, config: Any, **how: Any) -> tuple[Any, dict[str, Any]]:
    files.check_path(name, GIVE)
    try:
        with _quiet(progress="device_map" not in how):
            lm, info = AutoModelForCausalLM.from_pretrained(
                name,
                config=config,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused here, by name
                **how,
            )
    except InputError:
        raise
    except Exception as error:  # of damaged files, of the hub, of a family's code: of any kind
        raise InputError(f"cannot load the model {name}: {reason(error)}") from error
    missing, surplus = info["missing_keys"], info["unexpected_keys"]
    if missing:
        more = f", and has {_some(surplus)} instead" if surplus else ""
        heads = any("lm_head" in tensor or "embed_out" in tensor for tensor in missing)
        cure = "; if its head is its embedding, say tie_word_embeddings in its config.json"
        raise InputError(
            f"{name} lacks {_some(missing)} of {type(lm).__name__}{more}, so it cannot be trained "
            f"from or used{cure if heads else '; get it again, or choose another base'}"
        )
    for tensor, found, expected in sorted(info["mismatched_keys"]):
        raise InputError(
            f"{name} has {tensor} of shape {tuple(found)}, and its config.json makes it "
            f"{tuple(expected)}; take weights and configuration of the same model"
        )
    if info["error_msgs"]:
        raise InputError(f"cannot load the model {name}: {info['error_msgs'][0]}")
    return lm, info


def _lost(config: Any, files: Mapping[str, Path]) -> set[str]:
    """The tensors that files lack of a model, named as in files that Transformers writes."""
    try:
        with torch.device("meta"):
            lm = AutoModelForCausalLM.from_config(config)
        expected = revert_weight_conversion(lm, lm.state_dict())
    except Exception:  # of a configuration that makes no model: what failed before tells more
        return set()
    return set(expected) - set(files) - set(lm.all_tied_weights_keys)


def tensor_files(name: str | Path) -> Mapping[str, Path]:
    """The safetensors file of each tensor of a model; nothing where it has none.

    Of the files that a folder may have, those are taken that Transformers takes.
    """
    single = _file(name, "model.safetensors")
    files = {single} if single else _indexed(name, "model.safetensors.index.json")
    found = {}
    for path in sorted(files):
        with _opened(path) as file:
            found.update(dict.fromkeys(file.keys(), path))
    return found


def _indexed(name: str | Path, index: str) -> set[Path]:
    """The files of weights that an index of a model names."""
    path = _file(name, index)
    if path is None:
        return set()
    try:
        files = {
            file: _file(name, file) for file in json.loads(path.read_text())["weight_map"].values()
        }
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error!r}); get it again") from error
    lost = sorted(file for file, found in files.items() if found is None)
    if lost:
        raise InputError(f"{name} lacks {lost[0]}, which {index} names; get it again")
    return {found for found in files.values() if found}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise InputError(f"{path} is damaged ({reason(error)}); get it again") from error


def _types(files: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """Names and types of the tensors that are weights."""
    for path in sorted(set(files.values())):
        with _opened(path) as file:
            for tensor in file.keys():  # noqa: SIM118 (it is no mapping)
                if tensor.endswith("weight"):
                    yield tensor, file.get_slice(tensor).get_dtype()


def _has_own_head(config: Any, files: Mapping[str, Path], pickled: Mapping[str, Tensor]) -> bool:
    """Whether the files have two tensors that differ, of which the configuration makes one."""
    family = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if family is None or not getattr(config.get_text_config(), "tie_word_embeddings", False):
        return False
    prefix = f"{family.base_model_prefix}."
    there = {tensor.removeprefix(prefix): tensor for tensor in files or pickled}

    def read(tensor: str) -> Tensor:
        if tensor in pickled:
            return pickled[tensor]
        with _opened(files[tensor]) as file:
            found: Tensor = file.get_tensor(tensor)
        return found

    pairs = getattr(family, "_tied_weights_keys", None) or {}
    for one, other in pairs.items():
        patterns = [pattern.removeprefix(prefix) for pattern in (one, other)]
        two = [there[t] for pattern in patterns for t in there if re.fullmatch(pattern, t)]
        if len(two) == 2 and not torch.equal(*map(read, two)):
            return True
    return False


def _pickled(name: str | Path) -> dict[str, Tensor]:
    """The tensors of a model in files of ``torch.save``, mapped."""
    single = _file(name, "pytorch_model.bin")
    files = {single} if single else _indexed(name, "pytorch_model.bin.index.json")
    found: dict[str, Tensor] = {}
    for path in sorted(files):
        try:
            found.update(torch.load(path, map_location="cpu", mmap=True, weights_only=True))
        except Exception as error:  # of damage, of code in the file: of any kind
            raise InputError(f"{path} cannot be read ({reason(error)}); get it again") from error
    return found


def _file(name: str | Path, file: str) -> Path | None:
    """A file of a folder or of a model on the hub, None if it is not there or not to be had."""
    if Path(name).is_file():
        return None
    try:
        path = cached_file(
            str(name),
            file,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):  # no folder, and no name that the hub could have
        return None
    return None if path is None else Path(path)


def _some(names: Iterable[str]) -> str:
    """The first of some names, and how many there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - NAMED} more" if len(ordered) > NAMED else ""
    return ", ".join(ordered[:NAMED]) + more


@contextmanager
def _quiet(progress: bool) -> Iterator[None]:
    """Within it Transformers prints no report of its own: what matters of it is said here."""
    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not progress:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
