"""A picture of a row's attention, for people: ``python -m gem_ds.attention.masks --show SHARDS``.

A dot says that the token of its row attends the token of its column, its colour what the attending
token is: prefix or plain, summary, suffix. Documents are framed; a long row is shrunk.
"""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from gem_ds.attention.masks import regions, rule
from gem_ds.attention.segments import SummaryAttention
from gem_ds.errors import InputError, run
from gem_ds.files import replacing
from gem_ds.flags import Parser, whole
from gem_ds.layout import END, START, Bounds, document_of
from gem_ds.shards.dataset import Shards

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
    parser = Parser(
        "Draw who attends whom in a row of shards.", prog="python -m gem_ds.attention.masks"
    )
    parser.add_argument("--show", required=True, metavar="SHARDS", help="folder of shards")
    parser.add_argument("--row", type=whole(0), default=0, metavar="N", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("mask.png"), help="default: %(default)s")
    parser.add_argument("--summary-attention", choices=("isolated", "causal"), default="isolated")
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
