"""Pictures of rows against the rule, and the command that draws them."""

import subprocess
import sys

import numpy as np
import torch
from layouts import bounds_from
from PIL import Image
from runs import ROOT, random_shards

from gem_ds.attention import masks
from gem_ds.shards.dataset import Shards
from gem_ds.shards.mask_image import COLOURS, FRAME, LARGEST, PAPER, picture


def command(*args):
    return subprocess.run(
        [sys.executable, ROOT / "data_prep" / "inspect_shards.py", *map(str, args)],
        capture_output=True,
        text=True,
    )


def test_a_dot_is_an_allowed_pair_in_the_colour_of_the_attending_part():
    row = bounds_from([(3, 2, 2), (4, 0, 0)])
    drawn = picture(row)
    grow = len(drawn) // 11
    middles = drawn[grow // 2 :: grow, grow // 2 :: grow]
    allowed, part = masks.dense(row), masks.regions(row)
    for q in range(11):
        for kv in range(11):
            expected = COLOURS[part[q]] if allowed[q, kv] else PAPER
            assert tuple(middles[q, kv].tolist()) == expected
    assert tuple(drawn[0, 7 * grow - 1].tolist()) == FRAME  # the upper right of document 0


def test_a_long_row_is_shrunk_and_single_columns_stay_visible():
    row = bounds_from([(LARGEST, 1, 2 * LARGEST)])
    drawn = picture(row)
    assert drawn.shape[0] <= LARGEST
    column = LARGEST // 4  # where the summary token stands, four tokens a pixel
    below = drawn[column + 2 : -1, column].float()
    assert torch.equal(below[:, 0], torch.full((len(below),), float(COLOURS[2][0])))


def test_the_command_draws_a_row_of_shards(tmp_path, tokenizer_dir):
    shards = random_shards(tmp_path / "shards", tokenizer_dir, k=2)
    out = tmp_path / "mask.png"
    done = command(shards, "--row", 3, "--mask", out)
    assert done.returncode == 0, done.stderr
    expected = picture(Shards(shards).read(3).bounds).numpy()
    assert np.array_equal(np.asarray(Image.open(out)), expected)
    assert done.stdout.startswith(f"{out}: row 3, ")
    wrong = command(shards, "--row", 99, "--mask", out)
    assert wrong.returncode == 2
    assert "has rows 0 to 15; there is no 99" in wrong.stderr
    assert command(tmp_path / "nothing", "--row", 0, "--mask", out).returncode == 2
    alone = command(shards, "--mask", out)
    assert (alone.returncode, alone.stderr) == (2, "error: --mask is of --row; give that too\n")
