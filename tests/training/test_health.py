"""gem_ds.training.monitoring: losses that leap."""

import json
from pathlib import Path

import torch

from gem_ds.training.monitoring import Health


def test_a_loss_that_leaps_is_told_and_its_rows_are_written_down(tmp_path: Path) -> None:
    health = Health(tmp_path)

    def see(step: int, ntp: float, skipped: float = 0.0) -> list[str]:
        values = {"loss/ntp": ntp, "loss/contrastive": 0.0, "train/skipped": skipped}
        return health.see(step, values, [step, step + 1])

    noise = torch.randn(300, generator=torch.Generator().manual_seed(0)).tolist()
    falling = [5 - i / 100 + 0.1 * noise[i] for i in range(300)]
    assert [step for step, loss in enumerate(falling) if see(step, loss)] == []
    assert "loss/ntp leapt to 1000.0000, above" in see(300, 1000.0)[0]
    assert see(301, 2.0) == []
    assert see(302, float("nan"), skipped=1)
    assert health.skipped == 1
    assert see(303, 4.0), "one leap does not hide the next"
    assert health.skipped == 0
    lines = (tmp_path / "unusual-rank0.jsonl").read_text().splitlines()
    assert [json.loads(line)["rows"] for line in lines] == [[300, 301], [302, 303], [303, 304]]
