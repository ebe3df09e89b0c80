"""Models and micro-batches whose text a frozen base computes."""

import numpy as np
from exports import random_b
from models import tiny_model
from runs import random_row

from gem_ds.attention.registry import attach
from gem_ds.model import adapters, language_model
from gem_ds.model.batch import BatchOptions, make_batch
from gem_ds.model.contrastive import ContrastiveOptions
from gem_ds.model.positives import PositiveOptions

SUMMARY_TOKENS = (62, 63)
KINDS = ("dropout", "continuation", "crops")


def random_rows():
    rng = np.random.default_rng(5)
    return [random_row(rng, 64, 2, [62, 63], n_vocab=60, gem_share=0.7) for _ in range(3)]


def batch_of(rows, backend="sdpa", summary_attention="isolated", with_targets=True, kinds=KINDS):
    positives = PositiveOptions(kinds, summary_tokens=SUMMARY_TOKENS, bos_token_id=0, crop_every=32)
    options = BatchOptions(positives, backend, summary_attention, frozen_text=True)
    return make_batch(rows, range(len(rows)), options, with_targets, bool(kinds))


def adapted(family="llama", **sizes):
    lm = tiny_model(family, initializer_range=0.2, **sizes)
    attach(lm)
    adapters.inject(lm, "summary", 4, 8.0, SUMMARY_TOKENS, 0)
    random_b(lm)
    options = ContrastiveOptions(aggregation="concat", negatives="all")
    return language_model.TrainingModel(
        lm, options, None, language_model.summary_rows(lm, SUMMARY_TOKENS)
    )
