"""Tensors of a checkpoint, one at a time, are those of DeepSpeed's own script, all at once.

Real checkpoints are read in test_adapter_runs; here are shapes and numbers of ranks that these do
not have, in files as DeepSpeed writes them.
"""

import math
from pathlib import Path

import pytest
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

from gem_ds.checkpoints import zero_reader

SHAPES = [{"a": (5, 3), "b": (1,), "c": (7,)}, {"d": (4, 4), "e": (2, 3, 2), "g": (11,)}]
FROZEN = {"f": (3, 5), "h": (9,)}


def made(folder: Path, stage: int, n_ranks: int, padded: bool = False) -> Path:
    """The files of a checkpoint with random values."""
    torch.manual_seed(n_ranks)
    folder.mkdir(parents=True)
    groups = [{name: torch.randn(shape) for name, shape in group.items()} for group in SHAPES]
    frozen = {name: torch.randn(shape).bfloat16() for name, shape in FROZEN.items()}
    module = {"h.seen": torch.arange(4), "h.scale": torch.randn(2, 2), "a": torch.empty(0)}
    states = {
        "buffer_names": ["h.seen", "h.scale"],
        "module": module,
        "param_shapes": [{n: t.shape for n, t in group.items()} for group in groups],
        "frozen_param_shapes": {n: t.shape for n, t in frozen.items()},
        "shared_params": {"alias": "d"},
        "ds_version": "0",
    }
    paddings = [[3 * padded] * len(group) for group in groups]
    for rank in range(n_ranks):
        if stage == 3:
            mine = [share(t, rank, n_ranks) for group in groups for t in group.values()]
            flat = {"fp32_flat_groups": [torch.cat(mine[:2]), torch.cat(mine[2:])]}
            fragments = {n: share(t, rank, n_ranks) for n, t in frozen.items()}
        else:
            mine = [share(pad(group, paddings[0][0]), rank, n_ranks) for group in groups]
            flat = {"single_partition_of_fp32_groups": mine}
            flat |= {"param_alignment_paddings": paddings} if padded else {}
            fragments = frozen
        name = f"zero_pp_rank_{rank}_mp_rank_00"
        optimizer = {"zero_stage": stage, "partition_count": n_ranks, **flat}
        torch.save({"optimizer_state_dict": optimizer}, folder / f"{name}_optim_states.pt")
        if stage == 3 or not rank:
            name = name if stage == 3 else "mp_rank_00"
            content = {**states, "frozen_param_fragments": fragments}
            torch.save(content, folder / f"{name}_model_states.pt")
    return folder


def share(tensor: torch.Tensor, rank: int, n_ranks: int) -> torch.Tensor:
    n = math.ceil(tensor.numel() / n_ranks)
    filled = torch.cat([tensor.flatten(), tensor.new_full((n_ranks,), 9)])
    return filled[rank * n : (rank + 1) * n].clone()


def pad(group: dict[str, torch.Tensor], padding: int) -> torch.Tensor:
    return torch.cat(
        [torch.cat([t.flatten(), torch.full((padding,), 7.0)]) for t in group.values()]
    )


@pytest.mark.parametrize("mapped_bytes", [1, 2**28])
@pytest.mark.parametrize(
    ("stage", "n_ranks", "padded"),
    [(3, 1, 0), (3, 3, 0), (3, 11, 0), (2, 1, 0), (2, 3, 0), (2, 3, 1)],
)
def test_equals_deepspeeds_own_script(
    tmp_path: Path, stage: int, n_ranks: int, padded: int, mapped_bytes: int
) -> None:
    folder = made(tmp_path / "tag", stage, n_ranks, bool(padded))
    expected = get_fp32_state_dict_from_zero_checkpoint(str(tmp_path), tag="tag")
    found = zero_reader.tensors(folder, mapped_bytes)
    assert expected.keys() - found.keys() == {"alias"}
    assert len(found) == 10
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
        assert tensor.dtype == expected[name].dtype, name


def test_files_are_let_go_when_enough_of_them_is_read(tmp_path: Path) -> None:
    folder = made(tmp_path / "tag", 3, 2)

    def mapped() -> bool:
        return str(folder) in Path("/proc/self/maps").read_text()

    found = zero_reader.tensors(folder, 40)  # a is 60 bytes, b 4
    kept = found["a"]
    assert not mapped()
    _ = found["b"]
    assert mapped()
    again = found["a"]
    assert torch.equal(kept, again), "a tensor outlives its file's mapping"
    assert kept.data_ptr() != again.data_ptr(), "nothing is kept"
    assert not mapped()


def test_asking_whether_a_name_is_there_reads_nothing(tmp_path: Path) -> None:
    found = zero_reader.tensors(made(tmp_path / "tag", 2, 1), 2**28)
    for path in (tmp_path / "tag").iterdir():
        path.unlink()
    assert "a" in found
    assert "z" not in found
    assert sorted(found)[0] == "a"
