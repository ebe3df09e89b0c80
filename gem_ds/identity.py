"""Which exported model it is: a digest by which memories and unfinished work know theirs."""

import hashlib
import json
from pathlib import Path

import numpy as np

from gem_ds import adapter_files, tokenization
from gem_ds.gem_config import GEM_CONFIG, GemConfig
from gem_ds.tokenization import Vocabulary

SAMPLES, SAMPLE_BYTES = 64, 4096  # of a file of weights


def fingerprint(folder: Path, vocab: Vocabulary, gem: GemConfig) -> str:
    """A digest of an exported model: configuration, tokenizer, adapter and weights.

    Of the weights' files it reads the headers and some pages spread over each, so that it takes no
    time to speak of and any training shows.
    """
    digest = hashlib.sha256(tokenization.fingerprint(vocab).encode())
    digest.update((folder / GEM_CONFIG).read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config.pop("transformers_version", None)
    digest.update(json.dumps(config, sort_keys=True).encode())
    if gem.adapter:
        adapter = folder.parent / adapter_files.FOLDER
        digest.update((adapter / "adapter_model.safetensors").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
            digest.update(file.read(header))
            for at in np.linspace(8 + header, max(size - SAMPLE_BYTES, 8 + header), SAMPLES):
                file.seek(int(at))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
