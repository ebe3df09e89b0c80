"""Tiny real tokenizers in the styles of the families, with their chat templates, made offline."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXTS = [
    *[doc for doc in (json.__doc__, Path.__doc__, str.__doc__, str.split.__doc__) if doc],
    'She said "Stop. Go!" (Really?) Then: 12, 345. Naïve café, Łódź … and so on.\r\nA line.',
    "吾輩は猫である。名前はまだ無い。「どこで生れたか。」本当？はい！😀",  # noqa: RUF001
]
REFUSE = "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}"
ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}" + REFUSE + "{% endif %}"
)
LLAMA2_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}" + ALTERNATE + ""
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}" + ALTERNATE + ""
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}"
    "{% endif %}{% endfor %}"
)
LLAMA3_TEMPLATE = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] "
    "+ '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}" + ALTERNATE + ""
    "{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GPT4_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def _sentencepiece(folder: Path, **options: Any) -> None:
    lines = [line for text in TEXTS for line in text.split("\n")] * 4
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=520,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
        **options,
    )
    (folder / "tokenizer.vocab").unlink()


def _stock(folder: Path) -> Any:
    from transformers import AutoTokenizer  # takes seconds, which most tests need not wait

    return AutoTokenizer.from_pretrained(folder)


def _config(folder: Path, tokenizer_class: str, **settings: Any) -> None:
    settings = {"tokenizer_class": tokenizer_class, "model_max_length": 1 << 17} | settings
    settings["clean_up_tokenization_spaces"] = False
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


def _llama2(folder: Path) -> None:
    """tokenizer.model alone; Transformers converts it."""
    _sentencepiece(folder)
    more = {"add_bos_token": True, "legacy": False, "chat_template": LLAMA2_TEMPLATE}
    _config(folder, "LlamaTokenizer", **NAMED, **more)


def _llama2_json(folder: Path) -> None:
    """tokenizer.json as it was published: its normalizer puts ``▁`` before every piece of text."""
    _llama2(folder)
    state = json.loads(_stock(folder).backend_tokenizer.to_str())
    parts = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    backend = Tokenizer.from_str(json.dumps(state | {"pre_tokenizer": None}))
    backend.normalizer = normalizers.Sequence(parts)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer.model").unlink()
    named = {name: {"content": token} for name, token in NAMED.items()}
    (folder / "special_tokens_map.json").write_text(json.dumps(named))
    _config(folder, "PreTrainedTokenizerFast", chat_template=LLAMA2_TEMPLATE)


def _mistral(folder: Path) -> None:
    """``[INST]`` and ``[/INST]`` are control tokens; Metaspace puts ``▁`` before a text alone."""
    _sentencepiece(folder, control_symbols=["[INST]", "[/INST]"])
    more = {"additional_special_tokens": ["[INST]", "[/INST]"], "add_bos_token": True}
    _config(folder, "LlamaTokenizer", **NAMED, **more, legacy=False, add_prefix_space=True)
    (folder / "chat_template.jinja").write_text(MISTRAL_TEMPLATE)
    _stock(folder).save_pretrained(folder)
    (folder / "tokenizer.model").unlink()


def _gemma(folder: Path) -> None:
    turns = ["<start_of_turn>", "<end_of_turn>"]
    ids = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}
    pieces = {"pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>"}
    options = {"user_defined_symbols": ["<mask>", *turns], "add_dummy_prefix": False}
    _sentencepiece(folder, **ids, **pieces, **options)
    names = {name.replace("_piece", "_token"): token for name, token in pieces.items()}
    names |= {"unk_token": "<unk>", "chat_template": GEMMA_TEMPLATE}
    more = {"additional_special_tokens": turns, "add_bos_token": True}
    _config(folder, "GemmaTokenizer", **names, **more)
    _stock(folder).save_pretrained(folder)
    (folder / "tokenizer.model").unlink()


def _byte_level(words: str, controls: list[str], normalizer: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=normalizer is None))
    tokenizer.normalizer = normalizer
    split = pre_tokenizers.Split(Regex(words), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS * 4,
        trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer.add_special_tokens([AddedToken(c, special=True, normalized=False) for c in controls])
    return tokenizer


def _llama3(folder: Path) -> None:
    bos = "<|begin_of_text|>"
    controls = [bos, "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = _byte_level(GPT4_WORDS, controls)
    template = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos}:1 $B:1",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
    byte_level = processors.ByteLevel(trim_offsets=True)
    tokenizer.post_processor = processors.Sequence([byte_level, template])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": bos, "eos_token": "<|eot_id|>"}
    _config(folder, "PreTrainedTokenizerFast", **names, chat_template=LLAMA3_TEMPLATE)


def _qwen(folder: Path) -> None:
    controls = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = GPT4_WORDS.replace("{1,3}", "")
    tokenizer = _byte_level(words, controls, normalizers.NFC())
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ("<think>", "</think>")])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    end = "<|endoftext|>"
    extra = {"additional_special_tokens": controls[1:], "add_bos_token": False, "bos_token": None}
    _config(folder, "Qwen2Tokenizer", **extra, eos_token=end, pad_token=end)
    (folder / "chat_template.jinja").write_text(QWEN_TEMPLATE)


_MAKERS: dict[str, Callable[[Path], None]] = {
    "llama2": _llama2,
    "llama2_json": _llama2_json,
    "mistral": _mistral,
    "llama3": _llama3,
    "qwen": _qwen,
    "gemma": _gemma,
}
FAMILIES = tuple(_MAKERS)


def save(family: str, folder: Path) -> Path:
    """The family's tokenizer in `folder`, as it is published."""
    folder.mkdir(parents=True)
    _MAKERS[family](folder)
    return folder
