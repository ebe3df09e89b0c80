"""What a job needs, and the best way to do it."""

import re
from dataclasses import replace

import pytest
from plans import H100S, KEEP, LLAMA, on, told, typed
from runs import ROOT

from gem_ds.errors import InputError
from gem_ds.model import kl_reference
from gem_ds.planning import advice, plan, plan_flags, report
from gem_ds.planning import memory_estimate as of_memory
from gem_ds.planning.expected_batch import Data
from gem_ds.planning.plan import Fixed
from gem_ds.planning.strategy import Way


def test_the_fastest_way_that_fits_is_taken():
    job = on(8, memory=60)
    found = plan.best(job, Fixed())
    assert found.fits
    others = [plan.evaluate(job, way) for way in Fixed().ways(job)]
    fastest = min(other.speed.seconds for other in others if other.fits)
    assert found.speed.seconds <= 1.02 * fastest
    assert any(not other.fits for other in others)


def test_offload_is_taken_where_nothing_else_fits():
    found = plan.best(on(2, "4090", replace(KEEP, data=Data(2048))), Fixed())
    assert (found.fits, found.way.offload) == (True, "all")
    assert found.host_gib > 150


def test_what_is_asked_for_stays():
    fixed = Fixed(stage=3, offload="optimizer", rows_per_micro_batch=2, checkpoint_every=2)
    found = plan.best(KEEP, fixed).way
    assert (found.stage, found.offload, found.rows_per_micro_batch) == (3, "optimizer", 2)
    assert found.checkpoint_every == 2


def test_the_smallest_number_of_gpus():
    fixed = Fixed(stage=3, offload="none", rows_per_micro_batch=1)
    least = advice.smallest(KEEP, fixed)
    n = least.job.cluster.gpus
    assert least.fits
    assert n > 1
    assert not plan.best(on(n // 2), fixed).fits
    assert advice.smallest(on(8, memory=4), fixed, most=64) is None
    # More GPUs than rows of a step, and a step that no other number of GPUs divides.
    for rows in (32, 24):
        many = replace(fixed, rows_per_micro_batch=rows)
        found = advice.smallest(told(on(1, memory=24), rows_per_step=rows), many)
        assert found is None or found.config.rows_per_step % (rows * found.job.cluster.gpus) == 0


def test_more_of_anything_needs_more_memory():
    base = plan.evaluate(KEEP, Way()).gib
    for way in (Way(rows_per_micro_batch=2), Way(checkpoint_every=0), Way(stage=2)):
        assert plan.evaluate(KEEP, way).gib > base
    for way in (Way(offload="optimizer"), Way(bf16_states=True)):
        assert plan.evaluate(KEEP, way).gib < base
    assert plan.evaluate(on(16), Way()).gib < base
    lossless = told(adapter="summary", lora_rank=32, alpha=1.0, kl_to_base=0.0)
    assert plan.evaluate(lossless, Way()).gib < 0.5 * base


def test_states_are_sixteen_bytes_a_parameter():
    job = told(kl_to_base=0.0)
    states = plan.evaluate(job, Way()).memory.states
    padded = LLAMA.with_summary_tokens(8).n_parameters + 1
    assert sum(states.values()) == pytest.approx((2 + 4 + 4 + 8) * padded / 8)
    bf16 = plan.evaluate(job, Way(bf16_states=True)).memory.states
    assert sum(bf16.values()) == pytest.approx((2 + 4 + 2 + 4) * padded / 8)
    offloaded = plan.evaluate(job, Way(offload="all")).memory
    assert offloaded.states == {}
    # And twelve more for the copy of a checkpoint.
    assert offloaded.of_machine(8) == pytest.approx((18 + 4 + 12) * padded)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--gpus 8 --gpu-memory 40 --zero-stage 2 --checkpoint-every 0", "--recipe lossless"),
        ("--gpus 8 --gpu-memory 30 --zero-stage 2", "--zero-stage 3"),
        (
            "--gpus 2 --gpu-memory 24 --zero-stage 2 --offload optimizer --row-length 1024",
            "--zero-stage 3",
        ),
        (
            "--gpus 1 --offload none --adapter everywhere --gpu-memory 30",
            "--recipe lossless without --adapter",
        ),
        ("--gpus 1 --gpu-memory 24 --rows-per-micro-batch 32", "--rows-per-micro-batch 1"),
        ("--gpus 1 --gpu-memory 2", "--gpu-memory 9"),
        (
            "--gpus 8 --host-memory 60 --gpu-memory 40 --offload all",
            "--bf16-states without --offload",
        ),
        ("--gpus 1 --deepspeed ds_configs/zero2.json", "without --deepspeed"),
        ("--gpus 8 --gpu-memory 24 --row-length 131072 --kl-to-base 0", "--row-length 16384"),
    ],
)
def test_advice_is_what_the_planner_says_of_flags_that_follow_it(monkeypatch, flags, expected):
    monkeypatch.chdir(ROOT)
    words = f"--model llama3.1-8b --recipe keep {flags}".split()
    found = plan_flags.plan_of(typed(*words))
    assert not found.fits
    text = report.text(found, typed(*words), "JSON")
    assert ("DOES NOT FIT: " in text, "start it with" in text) == (True, False)
    advised = re.findall(r"^  (.*) fits: ([\d.]+) GiB", text, re.MULTILINE)
    assert any(change.startswith(expected) for change, _ in advised), text
    for change, gib in advised:
        given, _, left = change.partition("without ")
        changed = [word for word in given.split() if word.startswith("--")]
        gone = [name for name in left.split(", ") if name] + changed
        followed = plan_flags.plan_of(typed(*_without(words, gone), *given.split()))
        assert followed.fits, change
        assert f"{followed.gib:.1f}" == gib


def _without(words, flags):
    """A command line without some flags and their values."""
    kept = []
    for i, word in enumerate(words):
        if word not in flags and not (i and words[i - 1] in flags and not word.startswith("--")):
            kept.append(word)
    return kept


def test_what_no_number_of_gpus_holds_is_said():
    words = "--model llama3.1-8b --recipe keep --gpus 1 --gpu-memory 2 --rows-per-micro-batch 32"
    args = typed(*words.split())
    text = report.text(plan_flags.plan_of(args), args, "JSON")
    assert "the GPU needs" in text
    assert "no number of these GPUs up to 1,024 fits" in text
    assert "2 GPUs" not in text


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match=r"no multiple of 24 .* choose 48"):
        plan.evaluate(replace(KEEP, cluster=replace(H100S, gpus=24)), Way())
    with pytest.raises(InputError, match="no multiple of 64 GPUs; choose 64"):
        plan.best(replace(KEEP, cluster=replace(H100S, gpus=64)), Fixed())


def test_a_chunk_of_the_comparison_is_the_trainers():
    assert of_memory.CHUNK == kl_reference.CHUNK
