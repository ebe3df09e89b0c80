"""Files of texts to files of vectors or of memories, in parts, by one process or several.

Parts, and what several processes do of them, are in `resumable_parts`.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from gem_ds import distributed, launcher
from gem_ds.errors import InputError
from gem_ds.export.gem_config import find_export, read_gem_config
from gem_ds.inference import memory_files, resumable_parts
from gem_ds.inference.encoder import Encoder
from gem_ds.inference.gem_model import GemModel
from gem_ds.inference.long_texts import LongTexts
from gem_ds.inference.quantization import Precision
from gem_ds.inference.resumable_parts import Vectors
from gem_ds.inference.text_files import Text, TextFile

STDOUT = "-"
PATIENCE = timedelta(minutes=30)  # with ranks that load the model more slowly
MEMORIES = ".safetensors"


@dataclass(frozen=True)
class Settings:
    """What vectors depend on beside texts and model; see `Encoder.encode`. `dtype` is torch's name,
    of what the model computes in."""

    dtype: str | None = None
    max_length: int | None = None
    prompt: str | None = None
    truncate_dim: int | None = None
    precision: Precision = "float32"
    long_texts: LongTexts = "cut"


def embed(
    model: str,
    source: TextFile,
    output: str,
    settings: Settings = Settings(),
    batch_tokens: int = 8192,
    part: int = resumable_parts.PART,
    verify: bool = False,
) -> None:
    """Write the vectors of a file of texts to a .npy or .parquet, or to standard output.

    The output appears whole or not at all; interrupted, the same call does what is missing.
    """
    device = _meet()
    if output != STDOUT:
        resumable_parts.check(Path(output))
    _check_alone(source, output)
    encoder = Encoder.from_pretrained(model, device, _dtype(settings.dtype), verify=verify)

    def vectors(texts: Sequence[Text]) -> Vectors:
        return encoder.encode(
            [text.text for text in texts],
            batch_tokens,
            settings.max_length,
            show_progress=sys.stderr.isatty() and not distributed.rank(),
            truncate_dim=settings.truncate_dim,
            prompt=settings.prompt,
            precision=settings.precision,
            long_texts=settings.long_texts,
        )

    if output == STDOUT:
        resumable_parts.to_stdout(vectors(list(source.texts())))
        return
    path = Path(output)

    def write(file: Path, texts: Sequence[Text]) -> None:
        resumable_parts.write(file, [text.id for text in texts], vectors(texts), path.suffix)

    identity = {**_identity(model, source), **asdict(settings)}
    resumable_parts.run(
        source.texts(), identity, path, path.suffix, write, resumable_parts.join, part
    )


def compress(
    model: str,
    source: TextFile,
    output: str,
    dtype: str | None = None,
    batch_tokens: int = 8192,
    part: int = resumable_parts.PART,
    verify: bool = False,
) -> None:
    """Write the memories of a file of texts, by their ids, to a folder or one .safetensors file."""
    device = _meet()
    path = Path(output)
    if path.suffix != MEMORIES and path.exists():
        raise InputError(f"--output {path} exists; name another folder or remove it")
    if not path.parent.is_dir():
        raise InputError(f"--output {path}: there is no folder {path.parent}; make it")
    _check_alone(source, output)
    gem = GemModel.from_pretrained(model, device, _dtype(dtype), verify)

    def write(file: Path, texts: Sequence[Text]) -> None:
        made = gem.compress([text.text for text in texts], batch_tokens)
        assert isinstance(made, list)
        memories = {text.id: memory for text, memory in zip(texts, made, strict=True)}
        if len(memories) < len(texts):
            raise InputError(f"{source.path}: an id stands for two texts; give each its own")
        memory_files.write(memories, file)

    identity = {**_identity(model, source), "dtype": dtype}
    join = _join_file if path.suffix == MEMORIES else _join_folder
    resumable_parts.run(source.texts(), identity, path, MEMORIES, write, join, part)


def _join_file(parts: Sequence[Path], output: Path) -> None:
    memory_files.write(memory_files.read(parts[0].parent), output)


def _join_folder(parts: Sequence[Path], output: Path) -> None:
    parts[0].parent.replace(output)  # with the plan, which tells what they are of


def _meet() -> torch.device:
    """Join the other ranks of a launcher, if any; the device of this one."""
    logging.disable_progress_bar()  # of loading weights
    env = dict(os.environ)
    launcher.join(env)
    if int(env["WORLD_SIZE"]) > 1 and not distributed.initialized():
        os.environ.update(env)
        with distributed.meeting():
            torch.distributed.init_process_group("gloo", timeout=PATIENCE)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(env["LOCAL_RANK"]) % torch.cuda.device_count())


def _check_alone(source: TextFile, output: str) -> None:
    if distributed.world_size() > 1 and (source.is_standard_input or output == STDOUT):
        raise InputError(
            "several processes cannot share standard input or output; name files with --input and "
            "--output"
        )


def _dtype(name: str | None) -> torch.dtype | None:
    found = getattr(torch, name) if name else None
    assert found is None or isinstance(found, torch.dtype)
    return found


def _identity(model: str, source: TextFile) -> dict[str, Any]:
    return {
        "texts": source.identity(),
        "model": read_gem_config(find_export(model)).fingerprint,
    }
