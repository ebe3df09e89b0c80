"""What a forward pass keeps for its backward pass, in bytes a token and at once.

Of decoder layers as Transformers computes them (norms in fp32, a gated MLP whose product, gate and
up-projection are tensors of their own), with an attention that keeps q, k, v, its output and a
normaliser a head. b is bytes an element (2 in bf16, 4 in fp32):

    norm (two a layer)   4 C for the fp32 copy of its input, b C normalised, b C as the output
    attention            b (2 N H + 2 G H) and 4 N; with norms of q and k (N + G) H (4 + b) more
    MLP                  4 b I: gate, its activation, up-projection, their product

Of a layer that is computed again in the backward pass only its input stays, b C. While a layer goes
backward, gradients of the widest tensors stand beside what it kept: `BACKWARD`.

Shapes: T tokens, C hidden size, N heads, G key-value heads, H head size, I of the MLP, V
vocabulary.
"""

from gem_ds.model.architecture import Shape
from gem_ds.model.flops import columns, tokens_at_once

BACKWARD = 2  # times b I: three gradients in the MLP, when its product is no more needed


def layer(shape: Shape, b: int) -> float:
    """Bytes a token that one decoder layer keeps."""
    c, h = shape.hidden, shape.head_dim
    norms = 2 * (4 + 2 * b) * c
    attention = b * 2 * (shape.heads + shape.kv_heads) * h + 4 * shape.heads
    if shape.qk_norm:
        attention += (shape.heads + shape.kv_heads) * h * (4 + b)
    return norms + attention + 4 * b * shape.mlp


def backward(shape: Shape, b: int) -> float:
    """Bytes a token that the gradients in a layer's backward pass take."""
    return BACKWARD * b * shape.mlp


def kept(shape: Shape, b: int, checkpoint_every: int) -> float:
    """Bytes a token that all layers keep until the backward pass begins."""
    again = recomputed(shape.layers, checkpoint_every)
    return again * b * shape.hidden + (shape.layers - again) * layer(shape, b)


def recomputed(layers: int, checkpoint_every: int) -> int:
    """How many layers are computed again: the first of every so many, as Transformers counts."""
    return -(-layers // checkpoint_every) if checkpoint_every else 0


def logits(shape: Shape, b: int, targets: int, device: str = "cuda") -> float:
    """Bytes at the peak of the head and its loss: a block's logits, a piece of them in fp32, and
    the gradient of the targets' hidden states."""
    tokens = min(targets, tokens_at_once(shape.vocab, device))
    piece = tokens * min(columns(tokens, device), shape.vocab)
    return tokens * shape.vocab * b + 4.0 * piece + targets * shape.hidden * b
