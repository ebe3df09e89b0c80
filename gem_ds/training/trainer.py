"""The training loop: from a configuration to checkpoints. `setup` makes a run ready."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import NamedTuple

import torch
from torch.profiler import record_function

from gem_ds import distributed
from gem_ds.checkpoints.writer import Retention, Saver
from gem_ds.corpus.mixture import folded
from gem_ds.errors import InputError, StoppedError
from gem_ds.launcher import StopRequest
from gem_ds.model.batch import Batch
from gem_ds.model.flops import of_stream
from gem_ds.model.loss_normalization import step_loss
from gem_ds.training.config import TrainConfig
from gem_ds.training.dry_run import memory_advice, rehearse
from gem_ds.training.monitoring import Health, Metrics, memory_gib, profiled, utilization
from gem_ds.training.setup import Run, open_run
from gem_ds.training.watchdog import Watchdog

SAVING_SECONDS = 1500.0  # that the disk may take, whatever the timeout of steps


def train(config: TrainConfig, request: StopRequest) -> None:
    """Run training to its last step, or until the request to stop is made.

    Raises `InputError` for what the user can mend, `StoppedError` where it was asked to stop.
    """
    with ExitStack() as stack:
        run = open_run(config, stack)
        stack.enter_context(closing(run.loader))
        enabled = distributed.rank() == 0
        metrics = Metrics(run.folder, run.first_step, config.steps, enabled)
        stack.enter_context(closing(metrics))
        saver = Saver(
            run.engine,
            run.folder,
            run.engine.module.save_config,
            Retention(config.keep_last, config.keep_every),
            metrics.say,
            config.background_save,
            run.first_step if config.save else 0,
        )
        stack.enter_context(closing(saver))
        stack.enter_context(_naming_lost_ranks(run.watchdog))
        n_traced = config.profile if enabled else 0
        trace = stack.enter_context(profiled(run.folder, n_traced, "rank-00000"))
        stack.enter_context(request.remembering())
        _loop(run, metrics, saver, request, trace)


@contextmanager
def _naming_lost_ranks(watchdog: Watchdog) -> Iterator[None]:
    """Turns what a collective says when another rank is gone into which one, and why."""
    try:
        yield
    except RuntimeError as error:
        missing = watchdog.missing() if distributed.is_lost(error) else ""
        if not missing:
            raise
        raise InputError(f"{missing}; the run ends, continue with --resume auto") from error


def _loop(
    run: Run, metrics: Metrics, saver: Saver, request: StopRequest, trace: Callable[[], None]
) -> None:
    config, health = run.config, Health(run.folder)
    if config.rehearse and run.first_step < config.steps:
        run.watchdog.move("rehearsing the longest rows")
        with memory_advice(run, "while rehearsing the longest rows"):
            rehearse(run)
    done, ended = run.first_step, time.perf_counter()
    saved_at = time.monotonic()
    for step in range(run.first_step, config.steps):
        with memory_advice(run, f"in step {step}"):
            minutes = (time.monotonic() - saved_at) / 60
            overdue = distributed.rank() == 0 and 0 < config.save_minutes <= minutes
            taken = train_step(run, step, [request.made, saver.written, overdue])
        began, ended = ended, time.perf_counter()
        trace()
        metrics.log(step, {**taken.values, "speed/loop_seconds": ended - began})
        if step == 0 and taken.values["train/skipped"]:
            raise InputError(
                "the first step has gradients that are not finite: the base overflows in this "
                "precision, or its files are damaged; check those, or choose another base"
            )
        rows = [i for batch in taken.batches for i in batch.row_ids]
        for text in health.see(step, taken.values, rows):
            metrics.say(f"step {step}: {text}")
        stop, n_written, late = taken.flags  # on how many ranks
        if n_written == distributed.world_size():
            saver.conclude()
        hopeless = health.skipped >= config.max_skipped_steps
        done = step + 1 - (health.skipped if hopeless else 0)
        due = done % config.save_every == 0 or done == config.steps or stop or hopeless or late
        if due and config.save:
            saved_at = time.monotonic()
            run.watchdog.move(f"saving the checkpoint of step {done}", SAVING_SECONDS)
            saver.save(run.state_at(done))
        if hopeless or (stop and done < config.steps):
            break
    run.watchdog.move("finishing the last checkpoint", SAVING_SECONDS)
    saved = saver.finish()
    if health.skipped >= config.max_skipped_steps:
        kept = ", and a checkpoint from before them is the latest" if config.save else ""
        again = "continue with --resume auto" if config.save else "begin again"
        raise InputError(
            f"{health.skipped} steps in a row, the last {step}, had gradients that are not finite; "
            f"their rows are in {run.folder}/unusual-rank*.jsonl{kept}; lower --learning-rate or "
            f"look at those rows, then {again}"
        )
    if not saved:
        raise InputError(
            f"the checkpoint of step {done} could not be written, see above; make room and "
            "continue with --resume auto from the one before, which is untouched"
        )
    if done < config.steps:
        kept = "with a checkpoint; continue with --resume auto"
        raise StoppedError(
            f"stopped as asked, after {done} of {config.steps} steps, "
            f"{kept if config.save else 'without a checkpoint (--save false)'}",
            config.stop_status,
        )


def operations(run: Run, batches: Sequence[Batch]) -> int:
    """Floating-point operations that a rank's micro-batches need, by `flops`; 0 if unknown."""
    if run.shape is None:
        return 0
    trained = "all" if run.config.adapter == "none" else run.config.adapter
    how = (trained, run.config.lora_rank)
    return round(sum(of_stream(run.shape, batch.counts, *how).model for batch in batches))


class Counts(NamedTuple):
    """What the micro-batches of a step hold, over all ranks."""

    targets: int
    anchors: int
    tokens: int
    padding: int
    reference: int  # tokens compared with the base
    operations: int


def exchange(run: Run, batches: Sequence[Batch]) -> tuple[list[Batch], Counts]:
    """This rank's micro-batches beside those of the others, and what all of them hold.

    All that hosts have to know of each other's rows, in one collective before a step's first
    kernel: later they would wait for their devices.
    """
    here = Counts(
        targets=sum(len(b.targets) for b in batches),
        anchors=sum(len(b.anchors) for b in batches),
        tokens=sum(b.input_ids.numel() for b in batches),
        padding=sum(b.n_padding for b in batches),
        reference=sum(len(b.reference.index) for b in batches if b.reference),
        operations=operations(run, batches),
    )
    told = distributed.gather_counts([*here, *(len(b.anchors) for b in batches)], run.device)
    columns = list(zip(*told, strict=True))
    totals = Counts(*(sum(of_ranks) for of_ranks in columns[: len(here)]))
    anchors = columns[len(here) :]
    return [b.among(of_ranks) for b, of_ranks in zip(batches, anchors, strict=True)], totals


class Step(NamedTuple):
    """A step that was taken."""

    values: dict[str, float]  # metrics, the same on all ranks
    batches: list[Batch]  # this rank's micro-batches
    flags: list[int]  # on how many ranks each flag was set


def train_step(run: Run, step: int, flags: Sequence[bool] = ()) -> Step:
    """One optimizer step. ``train/skipped`` is 1 where the gradient was not finite and nothing
    moved. `flags` are what ranks want to tell each other: they travel with the losses."""
    began = time.perf_counter()
    engine, device = run.engine, run.device
    run.watchdog.move(f"in step {step}, reading rows")
    # For models with dropout: a function of the step, so that resuming repeats it.
    torch.manual_seed((folded(run.config.seed, 24) << 40) + (step << 16) + distributed.rank())
    alpha, rate = run.schedule.alpha_at(step), run.schedule.rate_at(step)
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    engine.module.read_temperature()
    batches = run.loader.step(step, with_targets=alpha < 1, with_views=alpha > 0)
    loaded = time.perf_counter()
    run.watchdog.move(f"in step {step}, computing")
    batches, counts = exchange(run, batches)
    sums = torch.zeros(5, dtype=torch.float64, device=device)
    for batch in batches:
        with record_function("gem_ds forward"):
            out = engine(batch.to(device))
        loss = step_loss(
            out.ntp,
            out.contrastive,
            out.kl,
            alpha,
            run.config.kl_to_base,
            counts.targets,
            counts.anchors,
            counts.reference,
            distributed.world_size(),
        )
        with record_function("gem_ds backward"):
            engine.backward(loss, scale_wrt_gas=False)
        with record_function("gem_ds optimizer"):  # of the last micro-batch alone
            engine.step()
        sums += torch.stack([x.detach().double() for x in out[:5]])
    told = torch.tensor([float(flag) for flag in flags], dtype=torch.float64, device=device)
    sums_of_all = distributed.sum_over_ranks(torch.cat([sums, told])).tolist()
    ntp = sums_of_all[0] / max(counts.targets, 1)
    kl = sums_of_all[1] / max(counts.reference, 1)
    contrastive, positive, negative = (x / max(counts.anchors, 1) for x in sums_of_all[2:5])
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
        "data/tokens": counts.tokens,
        "data/targets": counts.targets,
        "data/anchors": counts.anchors,
        "data/reference": counts.reference,
        "data/padding": counts.padding / counts.tokens,
        "speed/step_seconds": seconds,
        "speed/data_seconds": loaded - began,
        "speed/tokens_per_second": counts.tokens / seconds,
        "speed/targets_per_second": counts.targets / seconds,
        "memory/gib": memory_gib(device),
        **utilization(counts.operations / seconds / distributed.world_size(), device),
    }
    return Step(values, batches, [int(n) for n in sums_of_all[5:]])
