"""A picture of a row's attention, for people.

A dot says that the token of its row attends the token of its column, its colour what the attending
token is: prefix or plain, summary, suffix. Documents are framed; a long row is shrunk.
"""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from gem_ds.attention.masks import regions, rule
from gem_ds.attention.segments import SummaryAttention
from gem_ds.errors import InputError
from gem_ds.files import replacing
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


def draw(shards: Shards, row: int, path: Path, summary_attention: SummaryAttention) -> str:
    """Write the picture of a row as a PNG; a line that tells of it.

    Raises `InputError` if there is no such row.
    """
    if not 0 <= row < len(shards):
        raise InputError(f"{shards.folder} has rows 0 to {len(shards) - 1}; there is no {row}")
    bounds_D4 = shards.read(row).bounds
    with replacing(path) as partial:
        Image.fromarray(picture(bounds_D4, summary_attention).numpy()).save(partial, format="PNG")
    return f"{path}: row {row}, {len(bounds_D4)} documents, {bounds_D4[-1, END]} tokens"
