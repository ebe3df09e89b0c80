"""The shapes of decoder-only models: sizes, and every parameter in the order in which it is used.

Read from a ``config.json`` alone, no weights and no Transformers. What a plan does with them is
in `flops`, `planning.memory_estimate` and `communication`. A family is here if its parameters were
compared with those of Transformers' model.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from gem_ds.errors import InputError

VOCABULARY_MULTIPLE = 64  # rows that `language_model` pads an embedding to
SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "vocab_size"),
)
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")


class Module(NamedTuple):
    """A module with parameters of its own."""

    name: str
    shapes: tuple[tuple[int, ...], ...]  # of its parameters
    trained: bool = True

    @property
    def numel(self) -> int:
        return sum(_numel(shape) for shape in self.shapes)

    @property
    def matrices(self) -> int:
        """Elements of the matrices among its parameters."""
        return sum(_numel(shape) for shape in self.shapes if len(shape) > 1)


def _numel(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


@dataclass(frozen=True)
class Shape:
    """Sizes of a model: C hidden, N heads of H, G key-value heads, I of the MLP, V vocabulary."""

    name: str
    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int  # rows of the embedding
    tied: bool
    positions: int
    n_tokens: int  # of the tokenizer; below `vocab` where the embedding is padded
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    window: int | None = None  # tokens that a layer attends at most

    def layer(self) -> Iterator[Module]:
        """The modules of one decoder layer, in the order of its forward pass."""
        c, q, kv = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield _norm("input_layernorm", c)
        yield _linear("self_attn.q_proj", c, q, self.qkv_bias)
        if self.qk_norm:
            yield _norm("self_attn.q_norm", self.head_dim)
        yield _linear("self_attn.k_proj", c, kv, self.qkv_bias)
        if self.qk_norm:
            yield _norm("self_attn.k_norm", self.head_dim)
        yield _linear("self_attn.v_proj", c, kv, self.qkv_bias)
        yield _linear("self_attn.o_proj", q, c, self.o_bias)
        yield _norm("post_attention_layernorm", c)
        yield _linear("mlp.gate_proj", c, self.mlp, self.mlp_bias)
        yield _linear("mlp.up_proj", c, self.mlp, self.mlp_bias)
        yield _linear("mlp.down_proj", self.mlp, c, self.mlp_bias)

    @property
    def embedding(self) -> Module:
        return Module("embed_tokens", ((self.vocab, self.hidden),))

    @property
    def norm(self) -> Module:
        return _norm("norm", self.hidden)

    @property
    def n_parameters(self) -> int:
        """Elements of all parameters, those of a tied head once."""
        layers = self.layers * sum(module.numel for module in self.layer())
        return layers + self.norm.numel + self.embedding.numel * (1 if self.tied else 2)

    @property
    def layer_matrices(self) -> int:
        """Elements of all matrices of the decoder layers: a token meets each once."""
        return self.layers * sum(module.matrices for module in self.layer())

    def lora(self, rank: int) -> int:
        """Elements of LoRA on every linear layer of the decoder layers."""
        linear = [s for m in self.layer() for s in m.shapes if len(s) > 1]
        return self.layers * rank * sum(sum(shape) for shape in linear)

    def with_summary_tokens(self, k: int) -> "Shape":
        """The shape after `language_model.add_rows` made room for k summary tokens."""
        needed = self.n_tokens + k
        padded = -(-needed // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        return replace(self, vocab=padded if needed > self.vocab else self.vocab)


def _norm(name: str, size: int) -> Module:
    return Module(name, ((size,),))


def _linear(name: str, inputs: int, outputs: int, bias: bool) -> Module:
    return Module(name, ((outputs, inputs), (outputs,)) if bias else ((outputs, inputs),))


def _llama(name: str, *sizes: int, tied: bool = False) -> Shape:
    hidden, layers, heads, kv_heads, head_dim, mlp = sizes
    vocab, positions = 128256, 131072
    return Shape(
        name,
        *("llama", hidden, layers, heads, kv_heads, head_dim, mlp),
        *(vocab, tied, positions, vocab),
    )


# As in the published config.json of each.
BUILT_IN = {
    shape.name: shape
    for shape in (
        _llama("llama3.2-1b", 2048, 16, 32, 8, 64, 8192, tied=True),
        _llama("llama3.2-3b", 3072, 28, 24, 8, 128, 8192, tied=True),
        _llama("llama3.1-8b", 4096, 32, 32, 8, 128, 14336),
        Shape(
            "mistral-7b-v0.3",
            *("mistral", 4096, 32, 32, 8, 128, 14336),
            *(32768, False, 32768, 32768),
        ),
        Shape(
            "qwen3-8b",
            *("qwen3", 4096, 36, 32, 8, 128, 12288),
            *(151936, False, 40960, 151669),
            qk_norm=True,
        ),
    )
}


def load(model: str | Path) -> Shape:
    """The shape of a built-in name, a folder with a ``config.json``, or such a file.

    Raises `InputError` for anything else, with the list of names and families.
    """
    if str(model).lower() in BUILT_IN:
        return BUILT_IN[str(model).lower()]
    path = Path(model)
    path = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"--model {model}: no such shape or file; give a folder, a config.json, or one of "
            f"{', '.join(BUILT_IN)}"
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} holds no JSON object; give a model's config.json")
    return of_config(config, str(model))


def of_config(config: dict[str, Any], name: str) -> Shape:
    """The shape that a ``config.json`` describes. Raises `InputError` for an unknown family, or one
    that lacks a size."""
    family = config.get("model_type")
    if family not in FAMILIES:
        raise InputError(
            f"{name}: the parameters of model family {family!r} are not known here; known are "
            f"{', '.join(FAMILIES)}, and by name {', '.join(BUILT_IN)}"
        )
    for key in SIZES:
        size = config.get(key, 1)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"{name}: its config.json has {key} = {size!r}, which is no size")
    try:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        shape = Shape(
            name=name,
            family=family,
            hidden=hidden,
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or (128 if family == "qwen3" else hidden // heads),
            mlp=config["intermediate_size"],
            vocab=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", family == "smollm3")),
            positions=config.get("max_position_embeddings") or 0,
            n_tokens=config["vocab_size"],
        )
    except KeyError as error:
        raise InputError(f"{name}: its config.json has no {error.args[0]}") from error
    if config.get("use_sliding_window"):
        raise InputError(
            f"{name}: some layers of it have a sliding window and others not, which is not "
            f"planned; known by name are {', '.join(BUILT_IN)}"
        )
    biased = family in ("llama", "qwen3", "smollm3") and bool(config.get("attention_bias"))
    return replace(
        shape,
        qkv_bias=family == "qwen2" or biased,
        o_bias=biased,
        mlp_bias=bool(config.get("mlp_bias")) and family in ("llama", "smollm3"),
        qk_norm=family == "qwen3",
        window=config.get("sliding_window", 4096) if family == "mistral" else None,
    )
