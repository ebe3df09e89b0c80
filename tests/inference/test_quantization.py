"""Fewer bits as SentenceTransformers gives them, of each vector by itself."""

import numpy as np
import pytest
from sentence_transformers.util import quantize_embeddings

from gem_ds.errors import InputError
from gem_ds.inference.quantization import quantize

VECTORS = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)


def test_binary_is_ubinary() -> None:
    assert np.array_equal(quantize(VECTORS, "binary"), quantize_embeddings(VECTORS, "ubinary"))
    assert quantize(VECTORS[:0], "binary").shape == (0, 8)


def test_int8_is_stock_with_each_vectors_own_range() -> None:
    for vector in VECTORS:
        most = np.full(64, np.abs(vector).max())
        expected = quantize_embeddings(vector[None], "int8", ranges=np.stack([-most, most]))
        found = quantize(vector[None], "int8")
        assert found.dtype == np.int8
        assert np.abs(found.astype(int) - expected).max() <= 1  # steps are rounded otherwise
        assert (found == expected).mean() > 0.95


def test_int8_keeps_cosines_and_depends_on_no_other_vector() -> None:
    found = quantize(VECTORS, "int8").astype(np.float32)
    cosines = (found * VECTORS).sum(1) / np.linalg.norm(found, axis=1)
    assert cosines.min() > 0.999
    assert np.array_equal(quantize(VECTORS[2:3], "int8")[0], found[2])


def test_another_precision_is_refused() -> None:
    assert quantize(VECTORS, "float32") is VECTORS
    with pytest.raises(InputError, match="no precision 'int4'; choose float32, int8, binary"):
        quantize(VECTORS, "int4")
