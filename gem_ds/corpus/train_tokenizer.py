"""Training a byte-level BPE tokenizer, for a model from scratch.

`tokenization` adds summary tokens to an existing tokenizer.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from gem_ds.corpus import discovery, record_reader
from gem_ds.corpus.records import EMPTY, Skip
from gem_ds.errors import InputError

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
N_BYTES = 256


def texts_in(names: Sequence[str], field: str = "text") -> Iterator[str]:
    """The `field` of all records of corpus files, of every format that sharding reads.

    Empty ones are left out.

    Raises `InputError` naming a record that cannot be read.
    """
    found = discovery.find(names)
    for block in record_reader.blocks(found, record_reader.whole(found), lambda _: [field]):
        for record in block.records:
            try:
                yield record.text(field)
            except Skip as skip:
                if str(skip) != EMPTY:
                    where = f"{found[block.part].path}, line {record.line}"
                    raise InputError(f"{where}: {skip}; correct or remove the line") from None


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of `vocab_size` tokens that writes `<|bos|>` before each text.

    The same texts give the same tokenizer. Raises `InputError` where the vocabulary does not even
    hold the bytes, or where the texts are too few to fill it.
    """
    specials = [BOS, EOS, PAD]
    if vocab_size < N_BYTES + len(specials):
        raise InputError(
            f"a byte-level vocabulary needs at least {N_BYTES + len(specials)} tokens, "
            f"got {vocab_size}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise InputError(
            f"the texts give only {tokenizer.get_vocab_size()} tokens of the {vocab_size} asked "
            "for; ask for fewer or give more text"
        )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a folder that `AutoTokenizer.from_pretrained` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))
