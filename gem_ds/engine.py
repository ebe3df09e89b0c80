"""The training loop: from a configuration to checkpoints. Building a run is `build`'s business."""

import json
import time
from contextlib import closing
from pathlib import Path

import torch

from gem_ds import checkpoint, dist
from gem_ds.batches import Batch
from gem_ds.build import Run, open_run
from gem_ds.config import TrainConfig
from gem_ds.errors import InputError
from gem_ds.metrics import Metrics, memory_gib
from gem_ds.objectives import step_loss


def train(config: TrainConfig) -> None:
    """Run training to its last step. Raises `InputError` for what the user can mend."""
    run = open_run(config)
    metrics = Metrics(run.folder, run.first_step, config.steps, enabled=dist.rank() == 0)
    with closing(metrics), closing(run.loader):
        _loop(run, metrics)


def _loop(run: Run, metrics: Metrics) -> None:
    config = run.config
    skipped = 0
    for step in range(run.first_step, config.steps):
        values, batches = train_step(run, step)
        skipped = skipped + 1 if values["train/skipped"] else 0
        metrics.log(step, values)
        if skipped:
            _report_skip(run.folder, step, batches, skipped, config.max_skipped_steps)
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            path = checkpoint.save(
                run.engine,
                run.folder,
                {**run.state, "step": step + 1},
                run.engine.module.save_config,
                config.keep_last,
            )
            metrics.say(f"saved {path}")


def train_step(run: Run, step: int) -> tuple[dict[str, float], list[Batch]]:
    """One optimizer step. Returns its metrics, the same on all ranks, and this rank's
    micro-batches. ``train/skipped`` is 1 where the gradient was not finite and nothing moved."""
    began = time.perf_counter()
    engine, device = run.engine, run.device
    # For models with dropout: a function of the step, so that resuming repeats it.
    torch.manual_seed((run.config.seed << 40) + (step << 16) + dist.rank())
    alpha, rate = run.schedule.alpha_at(step), run.schedule.rate_at(step)
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    batches = run.loader.step(step, with_targets=alpha < 1, with_views=alpha > 0)
    loaded = time.perf_counter()
    local = [
        sum(len(b.targets) for b in batches),
        sum(len(b.anchors) for b in batches),
        sum(b.input_ids.numel() for b in batches),
        sum(b.n_padding for b in batches),
        sum(len(b.reference.index) for b in batches if b.reference),
    ]
    counts = dist.sum_over_ranks(torch.tensor(local, dtype=torch.int64, device=device)).tolist()
    n_targets, n_anchors, n_tokens, n_padding, n_reference = counts

    sums = torch.zeros(5, dtype=torch.float64, device=device)
    for batch in batches:
        out = engine(batch.to(device))
        loss = step_loss(
            out.ntp,
            out.contrastive,
            out.kl,
            alpha,
            run.config.kl_to_base,
            n_targets,
            n_anchors,
            n_reference,
            dist.world_size(),
        )
        engine.backward(loss, scale_wrt_gas=False)
        engine.step()
        sums += torch.stack([x.detach().double() for x in out[:5]])
    sums_of_all = dist.sum_over_ranks(sums).tolist()
    ntp = sums_of_all[0] / max(n_targets, 1)
    kl = sums_of_all[1] / max(n_reference, 1)
    contrastive, positive, negative = (x / max(n_anchors, 1) for x in sums_of_all[2:])
    grad_norm = engine.get_global_grad_norm()
    seconds = time.perf_counter() - began
    values = {
        "loss/total": (1 - alpha) * ntp + alpha * contrastive + run.config.kl_to_base * kl,
        "loss/ntp": ntp,
        "loss/contrastive": contrastive,
        "loss/kl": kl,
        "cosine/positives": positive,
        "cosine/negatives": negative,
        "schedule/alpha": alpha,
        "schedule/learning_rate": rate,
        "schedule/temperature": float(out.scale),
        "train/grad_norm": float("nan") if grad_norm is None else float(grad_norm),
        "train/skipped": float(not engine.was_step_applied()),
        "data/tokens": n_tokens,
        "data/targets": n_targets,
        "data/anchors": n_anchors,
        "data/reference": n_reference,
        "data/padding": n_padding / n_tokens,
        "speed/step_seconds": seconds,
        "speed/data_seconds": loaded - began,
        "speed/tokens_per_second": n_tokens / seconds,
        "speed/targets_per_second": n_targets / seconds,
        "memory/gib": memory_gib(device),
    }
    return values, batches


def _report_skip(run: Path, step: int, batches: list[Batch], skipped: int, limit: int) -> None:
    """Write down the rows of a step that was not applied; stop after `limit` in a row."""
    rows = [i for batch in batches for i in batch.row_ids]
    path = run / f"skipped-rank{dist.rank()}.jsonl"
    with path.open("a") as file:
        file.write(json.dumps({"step": step, "rows": rows}) + "\n")
    if skipped >= limit:
        raise InputError(
            f"{skipped} steps in a row, the last {step}, had gradients that are not finite; their "
            f"rows are in {path.with_name('skipped-rank*.jsonl')}; lower --learning-rate or look "
            "at those rows, then continue with --resume auto"
        )
