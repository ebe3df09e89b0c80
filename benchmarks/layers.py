"""Training steps of a stack of layers shaped as those of Llama 3.1 8B, on one GPU.

    python benchmarks/layers.py --json out.json

Forward, backward and a fused AdamW step in bf16, with gradient checkpointing, on rows of documents
a fifth of which have a summary token, with the logits of all targets. By attention backend: tokens
a second, share of the stated peak (`--peak`, TFLOP/s; 6 FLOP a parameter and token, attention and
recomputation not counted), and peak memory. ``stock`` is the same model with Transformers' own SDPA
attention, causal over the whole row: what one has without this project. The fastest backend again
with norms and MLPs compiled, and with Liger's kernels where that package is installed.
"""

import importlib.util
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from attention import Case
from transformers import LlamaConfig, LlamaForCausalLM

from gem_ds import layout
from gem_ds.attention.forward import Shaping
from gem_ds.attention.registry import attach, make_plan
from gem_ds.errors import run
from gem_ds.flags import Parser, real, whole
from gem_ds.model import layer_options
from gem_ds.model.cross_entropy import NextTokenLoss
from gem_ds.model.layer_options import Recompute

STEPS, WARM = 6, 2
FUSED = {"compile": layer_options.compile_parts, "liger": layer_options.apply_liger}

LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}


def build(shape: dict[str, Any], n_layers: int, device: str) -> Any:
    config = LlamaConfig(**shape, num_hidden_layers=n_layers)
    torch.manual_seed(0)
    with torch.device(device):
        lm = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    Recompute().apply(lm)
    return lm.train()


def measure(lm: Any, backend: Any, row: int, peak: float) -> dict[str, Any]:
    bounds_D4 = Case(row, 200, "bf16", 32, 8, 128).bounds
    ids_T = torch.randint(lm.config.vocab_size, (row,))
    device = lm.device
    targets_T = torch.from_numpy(layout.targets(ids_T.int().numpy(), bounds_D4)).to(device)
    index_N = (targets_T != layout.NO_TARGET).nonzero().squeeze(1)
    arguments: dict[str, Any] = {"input_ids": ids_T.to(device)[None], "use_cache": False}
    if backend == "stock":
        lm.set_attn_implementation("sdpa")
    else:
        attach(lm)
        arguments["position_ids"] = torch.from_numpy(layout.positions(bounds_D4)).to(device)[None]
    next_token_loss = NextTokenLoss(lm.lm_head, Shaping())
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-5, fused=True)
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(STEPS):
        torch.accelerator.synchronize()
        began = time.perf_counter()
        if backend != "stock":
            arguments["gem_plan"] = make_plan(bounds_D4, backend, device=device)
        hidden_TC = lm.base_model(**arguments).last_hidden_state[0]
        predicting_NC = hidden_TC.index_select(0, index_N)
        loss = next_token_loss(predicting_NC, targets_T[index_N]) / len(index_N)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        torch.accelerator.synchronize()
        times.append(time.perf_counter() - began)
    seconds = statistics.median(times[WARM:])
    used = sum(p.numel() for p in lm.parameters()) - lm.get_input_embeddings().weight.numel()
    del optimizer
    lm.zero_grad()
    return {
        "backend": backend,
        "row": row,
        "layers": lm.config.num_hidden_layers,
        "tokens_per_second": row / seconds,
        "model_flops_utilization": 6 * used * row / seconds / (peak * 1e12),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "loss": float(loss.detach()),
    }


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--layers", type=whole(1), default=8, help="of the model")
    parser.add_argument(
        "--rows", type=whole(1), nargs="+", default=[8192, 32768], help="tokens in each"
    )
    parser.add_argument(
        "--peak",
        type=real(0, 1e6, above=True),
        default=989.0,
        help="default: an H100's %(default)s",
    )
    args = parser.parse_args()
    results = []
    print("| row | attention | tokens/s | utilization | peak GiB |\n|---|---|---|---|---|")

    def tell(lm: Any, backend: str, row: int, name: str) -> None:
        r = measure(lm, backend, row, args.peak) | {"name": name}
        results.append(r)
        print(
            f"| {row} | {name} | {r['tokens_per_second']:.0f} | "
            f"{r['model_flops_utilization']:.1%} | {r['peak_gib']:.1f} |",
            flush=True,
        )

    lm = build(LLAMA_8B, args.layers, "cuda")
    for row in args.rows:
        for backend in ("varlen", "flex", "stock"):
            tell(lm, backend, row, backend)
    del lm
    for way, fuse in FUSED.items():
        if way == "liger" and importlib.util.find_spec("liger_kernel") is None:
            print("liger-kernel is not installed", flush=True)
            continue
        torch.cuda.empty_cache()
        lm = build(LLAMA_8B, args.layers, "cuda")
        fuse(lm)
        for row in args.rows:
            tell(lm, "varlen", row, f"varlen, {way}")
        del lm
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
