"""The GEM attention rule, once (paper, Section 3 and Figure 3).

For a document with a prefix of three tokens, two summary tokens and a suffix of two (row attends
column where 1):

          p0 p1 p2 s0 s1 x0 x1
      p0   1  .  .  .  .  .  .
      p1   1  1  .  .  .  .  .
      p2   1  1  1  .  .  .  .
      s0   1  1  1  1  .  .  .
      s1   1  1  1  .  1  .  .
      x0   .  .  .  1  1  1  .
      x1   .  .  .  1  1  1  1

With ``causal`` summary attention s1 attends s0 too; with ``isolated``, the paper's, it does not.
In a model with a sliding window of W tokens a token also attends none that stands W or more before
it in its document. Everything that computes attention is tested against `dense`; nothing fast
calls it.
"""

import numpy as np
import torch
from torch import Tensor

from gem_ds.attention.segments import SummaryAttention
from gem_ds.layout import SUFFIX, SUMMARY, Bounds, document_of

PREFIX_REGION, SUMMARY_REGION, SUFFIX_REGION = range(3)


def regions(bounds_D4: Bounds) -> Tensor:
    """(T,) int64: which part of its document each token is in."""
    of_T4 = bounds_D4[document_of(bounds_D4)]
    t = np.arange(len(of_T4))
    region_T = (t >= of_T4[:, SUMMARY]).astype(np.int64) + (t >= of_T4[:, SUFFIX])
    return torch.from_numpy(region_T)


def rule(
    q: Tensor,
    kv: Tensor,
    document_T: Tensor,
    region_T: Tensor,
    summary_attention: SummaryAttention = "isolated",
    window: int | None = None,
) -> Tensor:
    """Whether token `q` attends token `kv`; both are stream indices that broadcast together."""
    q_region, kv_region = region_T[q], region_T[kv]
    allowed = (document_T[q] == document_T[kv]) & (kv <= q)
    allowed = allowed & ~((q_region == SUFFIX_REGION) & (kv_region == PREFIX_REGION))
    if summary_attention == "isolated":
        both_summary = (q_region == SUMMARY_REGION) & (kv_region == SUMMARY_REGION)
        allowed = allowed & ~(both_summary & (q != kv))
    if window is not None:
        allowed = allowed & (q - kv < window)
    return allowed


def dense(
    bounds_D4: Bounds,
    summary_attention: SummaryAttention = "isolated",
    window: int | None = None,
) -> Tensor:
    """(T, T) bool, row attends column."""
    document_T = torch.from_numpy(document_of(bounds_D4))
    t = torch.arange(len(document_T))
    region_T = regions(bounds_D4)
    return rule(t[:, None], t[None, :], document_T, region_T, summary_attention, window)
