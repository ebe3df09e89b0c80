"""Memory and time of an export, against the size of the model.

    python benchmarks/export.py --hidden 1024 --layers 8 --shard-gb 0.05

Checkpoints as two ranks of ZeRO-3 write them, of random weights, with and without a frozen base,
are exported; printed is by how much the peak of the process's memory grew over what it was before,
mapped files included, in MB. A second process gathers the same checkpoint in memory first, as
DeepSpeed's script does.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gem_ds.errors import run
from gem_ds.flags import Parser, real, whole

MB = 1e6
RANKS = 2


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--hidden", type=whole(1), default=1024, help="width of the model")
    parser.add_argument("--layers", type=whole(1), default=8, help="of the model")
    parser.add_argument(
        "--shard-gb", type=real(0, 1e6, above=True), default=0.05, help="of a file of weights"
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--one", nargs=2, metavar=("RUN", "HOW"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measured(Path(args.one[0]), args.one[1], args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for frozen in (False, True):
            run = Path(folder) / f"run-{frozen}"
            n_bytes = write_run(run, args.hidden, args.layers, frozen)
            for how in ("streamed", "gathered"):
                command = [sys.executable, __file__, *sys.argv[1:], "--one", str(run), how]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found = json.loads(done.stdout.splitlines()[-1])
                what = "frozen base and adapters" if frozen else "all weights trained"
                print(
                    f"{what}, {n_bytes / MB:.0f} MB in the checkpoint's precision, {how}: "
                    f"peak grew by {found['grown'] / MB:.0f} MB in {found['seconds']:.1f} s",
                    flush=True,
                )


def memory(kind: str) -> int:
    """Bytes that this process has in memory (VmRSS) or has had at most (VmHWM)."""
    return 1024 * int(re.search(rf"{kind}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def measured(run: Path, how: str, args: argparse.Namespace) -> dict[str, float]:
    """Export in this process, after all libraries are loaded."""
    import torch
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    from peft import LoraConfig  # noqa: F401  (its memory is not the export's)

    from gem_ds.checkpoints import checkpoint, zero_reader  # noqa: F401
    from gem_ds.export import export

    Path("/proc/self/clear_refs").write_text("5")  # the peak is from here
    before, began = memory("VmRSS"), time.monotonic()
    if how == "gathered":
        path = checkpoint.find(run)
        get_fp32_state_dict_from_zero_checkpoint(str(path.parent), tag=path.name)
    else:
        dtype = getattr(torch, args.dtype)
        export.export_run(run, None, run.parent / f"out-{run.name}", dtype, shard_gb=args.shard_gb)
    return {"grown": memory("VmHWM") - before, "seconds": time.monotonic() - began}


def write_run(run: Path, hidden: int, layers: int, frozen: bool) -> int:
    """A run with one checkpoint of random weights; the bytes of its language model."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from gem_ds.checkpoints import checkpoint

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
    from exports import run_tokenizer
    from helpers import save_tokenizer

    base = save_tokenizer(run / "base")
    vocab, summary = run_tokenizer(base, run / "tokenizer", 2)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        vocab_size=vocab.size,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    of_base = {f"lm.{name}": p.shape for name, p in lm.named_parameters()}
    trained: dict[str, Any] = dict(of_base)
    if frozen:
        split = {n: n.replace(".weight", ".base_layer.weight") for n in of_base if "proj" in n}
        of_base = {split.get(name, name): shape for name, shape in of_base.items()}
        trained = {"summary_rows.weight": torch.Size([2, hidden])}
        for name in split.values():
            rows, columns = of_base[name]
            lora = name.replace(".base_layer.weight", ".lora_{}.default.weight")
            trained |= {lora.format("A"): torch.Size([8, columns])}
            trained |= {lora.format("B"): torch.Size([rows, 8])}
    folder = checkpoint.folder_of(run) / checkpoint.name_of(1)
    (folder / "model").mkdir(parents=True)
    config.save_pretrained(folder / "model")
    for rank in range(RANKS):
        write_rank(folder, rank, trained, of_base if frozen else {})
    (checkpoint.folder_of(run) / checkpoint.LATEST).write_text(folder.name)
    written = [path for path in folder.rglob("*") if path.is_file()]
    entries = {str(p.relative_to(folder)): checkpoint.entry_of(p) for p in written}
    state = {"step": 1, "summary_tokens": list(summary), "summary_attention": "isolated"}
    state |= {"manifest": "0" * 64, "aggregation": "mean", "dimensions": []}
    state |= {"adapter": ["summary", 8, 8.0] if frozen else None}
    checkpoint.write_state(folder, state, entries)
    told = {"config": {"model": str(base), "config": None}, "versions": {}}
    (run / "run.json").write_text(json.dumps(told))
    return sum(shape.numel() for shape in of_base.values()) * (2 if frozen else 4)


def write_rank(folder: Path, rank: int, trained: Any, frozen: Any) -> None:
    """The files of a rank, as DeepSpeed writes them."""
    import torch

    parts = {name: math.ceil(shape.numel() / RANKS) for name, shape in (trained | frozen).items()}
    flat = torch.randn(sum(parts[name] for name in trained))
    optimizer = {"zero_stage": 3, "partition_count": RANKS, "fp32_flat_groups": [flat]}
    optimizer["optimizer_state_dict"] = {"exp_avg": flat.clone(), "exp_avg_sq": flat.clone()}
    name = f"zero_pp_rank_{rank}_mp_rank_00"
    torch.save({"optimizer_state_dict": optimizer}, folder / f"{name}_optim_states.pt")
    model = {
        "buffer_names": [],
        "module": {},
        "param_shapes": [trained],
        "shared_params": {},
        "ds_version": "",
        "frozen_param_shapes": frozen,
        "frozen_param_fragments": {n: torch.randn(parts[n]).bfloat16() for n in frozen},
    }
    torch.save(model, folder / f"{name}_model_states.pt")


if __name__ == "__main__":
    run(main)
