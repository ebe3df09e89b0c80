"""The GEM attention rule, once (paper, Section 3 and Figure 3).

    python -m gem_ds.masks --show SHARDS --row N --out mask.png

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

The picture of a row shows allowed pairs by what the querying token is: prefix or plain, summary,
suffix. Documents are framed; a long row is shrunk.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gem_ds.errors import InputError, run
from gem_ds.layout import END, START, SUFFIX, SUMMARY, Bounds, document_of
from gem_ds.segments import SummaryAttention
from gem_ds.shards import Shards, replacing

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


COLOURS = [(90, 130, 190), (220, 120, 40), (90, 160, 90)]  # by region of the query
FRAME, PAPER = (190, 190, 190), (255, 255, 255)
LARGEST = 2048  # pixels a side


def picture(bounds_D4: Bounds, summary_attention: SummaryAttention = "isolated") -> Tensor:
    """(P, P, 3) uint8: who attends whom in a row, several pixels a token or several tokens one."""
    length = int(bounds_D4[-1, END])
    document_T, region_T = torch.from_numpy(document_of(bounds_D4)), regions(bounds_D4)
    colours_T3 = torch.tensor(COLOURS, dtype=torch.uint8)[region_T]
    shrink = -(-length // LARGEST)
    kv = torch.arange(length // shrink * shrink)
    strips = []
    for q in torch.split(kv, shrink * 64):  # never all pairs of a long row at once
        allowed = rule(q[:, None], kv, document_T, region_T, summary_attention)
        pixels = torch.where(allowed[..., None], colours_T3[q, None], torch.tensor(PAPER))
        # Of the pairs that share a pixel the darkest shows, so that single columns stay visible.
        blocks = pixels.view(-1, shrink, len(kv) // shrink, shrink, 3)
        strips.append(blocks.amin(dim=(1, 3)).to(torch.uint8))
    grow = max(1, min(16, LARGEST // 2 // length))
    drawn = torch.cat(strips).repeat_interleave(grow, 0).repeat_interleave(grow, 1)
    frame = torch.tensor(FRAME, dtype=torch.uint8)
    for start, end in (bounds_D4[:, [START, END]] // shrink * grow).tolist():
        last = max(end, start + 1) - 1
        for line in (
            drawn[start:end, start],
            drawn[start:end, last],
            drawn[start, start:end],
            drawn[last, start:end],
        ):
            line[(line == 255).all(-1)] = frame
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m gem_ds.masks", description="Draw who attends whom in a row of shards."
    )
    parser.add_argument("--show", required=True, metavar="SHARDS", help="folder of shards")
    parser.add_argument("--row", type=int, default=0, metavar="N", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("mask.png"), help="default: %(default)s")
    parser.add_argument("--summary-attention", choices=("isolated", "causal"), default="isolated")
    if len(sys.argv) == 1:
        parser.print_help()
        sys.exit(2)
    args = parser.parse_args()
    shards = Shards(args.show)
    if not 0 <= args.row < len(shards):
        raise InputError(f"{args.show} has rows 0 to {len(shards) - 1}; there is no {args.row}")
    bounds_D4 = shards.read(args.row).bounds
    drawn = Image.fromarray(picture(bounds_D4, args.summary_attention).numpy())
    with replacing(args.out) as partial:
        drawn.save(partial, format="PNG")
    print(f"{args.out}: row {args.row}, {len(bounds_D4)} documents, {bounds_D4[-1, END]} tokens")


if __name__ == "__main__":
    run(main)
