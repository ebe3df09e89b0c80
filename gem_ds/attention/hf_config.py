"""What a Transformers configuration says of a model: its dropout, and how long documents may be."""

from typing import Any

UNLIMITED = 1 << 20  # tokens of the longest document, where a family states no limit


def dropout_of(config: Any) -> dict[str, float]:
    """The entries of a configuration that make training random, with their rates."""
    entries = config.to_dict().items()
    named = {key: value for key, value in entries if "drop" in key or "jitter" in key}
    return {key: rate for key, rate in named.items() if isinstance(rate, float) and rate > 0}


def disable_dropout(config: Any) -> None:
    """Set every rate of dropout in a configuration to 0."""
    for part in (config, config.get_text_config()):
        for key in dropout_of(part):
            setattr(part, key, 0.0)


def longest_document(config: Any) -> int:
    """Tokens of the longest document that is computed alike whatever it stands beside.

    A model's positions, or less where LongRoPE turns positions otherwise as soon as any text of a
    batch is longer (Phi 3 and 4), or where attention is cut into chunks (Llama 4).
    """
    return min(_limits(config).values(), default=UNLIMITED)


def why_no_longer(config: Any) -> str:
    """What `longest_document` of a configuration follows from."""
    limits = _limits(config)
    return min(limits, key=lambda why: limits[why], default="no limit")


def _limits(config: Any) -> dict[str, int]:
    """Tokens of a document, by what limits them."""
    text = config.get_text_config()
    limits = {"max_position_embeddings": getattr(text, "max_position_embeddings", None)}
    rope = getattr(text, "rope_parameters", None) or {}
    for parameters in (rope, *rope.values()):
        if isinstance(parameters, dict) and parameters.get("rope_type") == "longrope":
            limits["LongRoPE: a longer text in a batch changes the positions of all"] = (
                parameters.get("original_max_position_embeddings")
                or getattr(text, "original_max_position_embeddings", None)
            )
    if "chunked_attention" in (getattr(text, "layer_types", None) or ()):
        limits["attention_chunk_size"] = getattr(text, "attention_chunk_size", None)
    return {why: int(limit) for why, limit in limits.items() if limit}
