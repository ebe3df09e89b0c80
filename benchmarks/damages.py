"""What can become of a file of an export, and files that can be put beside them."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


@dataclass(frozen=True)
class Damage:
    """`do` damages a file of a copy; it gets the same file of another export, too."""

    name: str
    do: Callable[[Path, Path], None]
    fits: Callable[[Path], bool] = lambda path: path.suffix != ".md"


def is_weights(path: Path) -> bool:
    return path.suffix == ".safetensors"


def is_json(path: Path) -> bool:
    return path.suffix == ".json"


def flip(path: Path, share: float) -> None:
    data = bytearray(path.read_bytes())
    data[min(int(share * len(data)), len(data) - 1)] ^= 1
    path.write_bytes(data)


def cut(path: Path, n_bytes: int) -> None:
    os.truncate(path, n_bytes)


def append(path: Path, _: Path) -> None:
    with path.open("ab") as file:
        file.write(b" " * 8)


def other(path: Path, others: Path) -> None:
    shutil.copyfile(others, path)


def linked(path: Path, others: Path) -> None:
    path.unlink()
    path.symlink_to(others)


def folder(path: Path, _: Path) -> None:
    path.unlink()
    path.mkdir()


def spoiled(path: Path, value: float) -> None:
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] = value
    save_file(tensors, path, {"format": "pt"})


def exchanged(path: Path, _: Path) -> None:
    """Two tensors of one shape change places; where there are none, one is doubled."""
    tensors = load_file(path)
    by_shape: dict[torch.Size, str] = {}
    for name, tensor in tensors.items():
        first = by_shape.setdefault(tensor.shape, name)
        if not torch.equal(tensors[first], tensor):
            tensors[first], tensors[name] = tensor.clone(), tensors[first].clone()
            break
    else:
        next(iter(tensors.values())).mul_(2)
    save_file(tensors, path, {"format": "pt"})


def pickled(path: Path, _: Path) -> None:
    name = {"model": "pytorch_model", "adapter_model": "adapter_model"}.get(path.stem, path.stem)
    torch.save(load_file(path), path.with_name(f"{name}.bin"))
    path.unlink()


def words(path: Path, _: Path) -> None:
    """Two words of the vocabulary change places."""
    told = json.loads(path.read_text())
    vocab = told["model"]["vocab"]
    a, b = list(vocab)[100:102]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    path.write_text(json.dumps(told, ensure_ascii=False))


def edited(path: Path, _: Path) -> None:
    """The first number of a JSON file is another."""
    text = path.read_text()
    at = next((i for i, c in enumerate(text) if c.isdigit()), None)
    if at is None:
        path.write_text(text.rstrip().rstrip("}]") + ("}" if "{" in text else "]") + "\n\n")
    else:
        path.write_text(f"{text[:at]}{(int(text[at]) + 1) % 10}{text[at + 1 :]}")


DAMAGES = {
    damage.name: damage
    for damage in (
        Damage("a bit flipped, early", lambda path, _: flip(path, 0.02)),
        Damage("a bit flipped, in the middle", lambda path, _: flip(path, 0.5)),
        Damage("a bit flipped, at the end", lambda path, _: flip(path, 1.0)),
        Damage("cut by a byte", lambda path, _: cut(path, path.stat().st_size - 1)),
        Damage("cut in half", lambda path, _: cut(path, path.stat().st_size // 2)),
        Damage("empty", lambda path, _: cut(path, 0)),
        Damage("bytes appended", append),
        Damage("deleted", lambda path, _: path.unlink()),
        Damage("a folder in its place", folder),
        Damage("a link to nothing", lambda path, _: linked(path, Path("nothing"))),
        Damage("of another export", other, is_weights),
        Damage("a link to another export's", linked, is_weights),
        Damage("a value that is NaN", lambda path, _: spoiled(path, float("nan")), is_weights),
        Damage("a value that is infinite", lambda path, _: spoiled(path, float("inf")), is_weights),
        Damage("a value changed", lambda path, _: spoiled(path, 0.125), is_weights),
        Damage("tensors exchanged", exchanged, is_weights),
        Damage("pickled", pickled, is_weights),
        Damage("words exchanged", words, lambda path: path.name == "tokenizer.json"),
        Damage("a number edited", edited, is_json),
        Damage("no JSON object", lambda path, _: path.write_text("[1]\n") and None, is_json),
        Damage("no UTF-8", lambda path, _: path.write_bytes(b"\xff\xfe{}") and None, is_json),
        Damage(
            "edited",
            lambda path, _: path.write_text("All is well.\n") and None,
            lambda path: path.suffix == ".md",
        ),
    )
}


def weights(path: Path, _: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    save_file({"x": torch.zeros(2)}, path)


def bin_file(path: Path, _: Path) -> None:
    torch.save({"x": torch.zeros(2)}, path)


def object_in(path: Path, _: Path) -> None:
    path.write_text('{"lora_alpha": 1, "weight_map": {"x": "../x.safetensors"}}')


def new(path: Path) -> bool:
    return not path.exists() and path.parent.is_dir()


SURPLUS = {
    name: Damage("put beside", do, new)
    for name, do in {
        "model.safetensors": weights,
        "model-00009-of-00009.safetensors": weights,
        "adapter_model.safetensors": weights,
        "model.safetensors.index.json": object_in,
        "adapter_config.json": object_in,
        "special_tokens_map.json": object_in,
        "config.json": object_in,
        "pytorch_model.bin": bin_file,
        "adapter_model.bin": bin_file,
        "model/pytorch_model.bin": bin_file,
        "model/adapter_config.json": object_in,
        "adapter/adapter_model.bin": bin_file,
    }.items()
}
