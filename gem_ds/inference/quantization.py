"""Embeddings in fewer bits, by the rules of SentenceTransformers' `quantize_embeddings`.

Shapes: N texts, C dimensions.
"""

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from gem_ds.errors import InputError

Precision = Literal["float32", "int8", "binary"]


def check(precision: str) -> None:
    """Raise `InputError` unless there is such a precision."""
    if precision not in get_args(Precision):
        raise InputError(
            f"there is no precision {precision!r}; choose {', '.join(get_args(Precision))}"
        )


def quantize(vectors_NC: npt.NDArray[np.float32], precision: Precision) -> npt.NDArray[Any]:
    """The vectors in a precision:

    | precision | result | what it is |
    |---|---|---|
    | ``float32`` | (N, C) float32 | the vectors |
    | ``int8`` | (N, C) int8 | 256 steps from ``-m`` to ``m``, the vector's own largest size |
    | ``binary`` | (N, C / 8) uint8 | a bit a dimension, 1 where it is above 0, eight a byte |

    ``int8`` is what `quantize_embeddings` gives for ``ranges`` of ``-m`` and ``m``: each vector has
    its own, so that it depends on no other text and needs no calibration, and cosines stay.
    ``binary`` is its ``ubinary``; compare by Hamming distance.
    """
    check(precision)
    if precision == "float32":
        return vectors_NC
    if precision == "binary":
        return np.packbits(vectors_NC > 0, axis=-1)
    most_N1 = np.abs(vectors_NC).max(-1, keepdims=True, initial=0)
    step_N1 = most_N1 / np.float32(127.5)
    steps_NC = np.floor((vectors_NC + most_N1) / np.where(step_N1 == 0, 1, step_N1))
    steps: npt.NDArray[Any] = (np.clip(steps_NC, 0, 255) - 128).astype(np.int8)
    return steps
