"""The rule against the paper's own matrix."""

import numpy as np
import torch

from gem_ds.attention import masks
from gem_ds.layout import plain

FIGURE_3 = """
1 . . . . . .
1 1 . . . . .
1 1 1 . . . .
1 1 1 1 . . .
1 1 1 . 1 . .
. . . 1 1 1 .
. . . 1 1 1 1
"""


def test_dense_is_figure_3_of_the_paper():
    expected = [[cell == "1" for cell in line.split()] for line in FIGURE_3.split("\n") if line]
    bounds = np.array([[0, 3, 5, 7]], dtype=np.int32)
    assert masks.dense(bounds).tolist() == expected


def test_causal_summaries_attend_earlier_ones():
    bounds = np.array([[0, 3, 5, 7]], dtype=np.int32)
    changed = masks.dense(bounds, "causal") != masks.dense(bounds)
    assert changed.nonzero().tolist() == [[4, 3]]


def test_documents_see_only_themselves():
    bounds = np.array([plain(0, 3), (3, 5, 6, 9), plain(9, 10)], dtype=np.int32)
    mask = masks.dense(bounds)
    for a, b in ((0, 3), (3, 9), (9, 10)):
        outside = torch.ones(10, dtype=torch.bool)
        outside[a:b] = False
        assert not mask[a:b][:, outside].any()
        assert mask[a:b, a:b].diagonal().all()
    assert torch.equal(mask[:3, :3], torch.ones(3, 3).tril().bool())
