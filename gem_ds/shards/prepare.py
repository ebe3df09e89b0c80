"""Data preparation from end to end: a corpus in, a finished folder of shards out.

A plan is made once and frozen; its units are done here, by worker processes, or by the machines of
a cluster; when all have their receipt, the manifest is written. The same command again does what is
missing. Shards depend on the plan, never on who did which unit when.
"""

import functools
import os
import platform
import shutil
import sys
import time
from collections import Counter
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gem_ds import files, process_pool
from gem_ds.corpus import discovery, mixture, tokenization
from gem_ds.corpus.discovery import Input
from gem_ds.corpus.record_reader import Part
from gem_ds.corpus.tokenization import Vocabulary
from gem_ds.errors import InputError
from gem_ds.shards import dataset, executors, finalize, unit_context, work_plan
from gem_ds.shards.config import LOCAL, RAY, PrepareConfig
from gem_ds.shards.documents import RECONSTRUCTION
from gem_ds.shards.manifest import MANIFEST, TOKENIZER, Manifest
from gem_ds.shards.work_plan import PLAN, Plan

NOT_ASKED = {  # what changes nothing of the shards
    *("input", "output", "tokenizer", "workers", "executor", "share", "only_plan", "tasks"),
    *("slurm", "memory_gb", "max_bad_fraction"),
}
# Bytes of shards per byte of text, seen with an 8k vocabulary; larger ones need less.
BYTES_PER_BYTE = 0.4


def prepare(config: PrepareConfig) -> Manifest | None:
    """Shard a corpus into ``config.output`` and say on stdout what came of it.

    Returns None if the folder is not finished yet: only a plan or a share was asked for, or a
    cluster is at work. A folder that the same configuration has finished is left as it is. Raises
    `InputError` for whatever is wrong with corpus, tokenizer, options, disk or workers.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    config.check()
    began = time.monotonic()
    output = Path(config.output)
    shares = mixture.parse(config.mix)
    found = discovery.find(config.input, list(shares), config.output)
    base = tokenization.load(config.tokenizer)
    vocab, summary_ids = tokenization.add_summary_tokens(base, config.summary_tokens)
    asked = settings(config, list(shares), vocab, summary_ids)
    if (output / MANIFEST).exists():
        manifest = dataset.Shards(output).manifest
        Plan.load(output).check_same(output, found, asked)
        print(f"{output} is already finished with these settings; nothing to do")
        return manifest
    try:
        here = config.executor == LOCAL and not config.share
        planned = config.share or (output / PLAN).exists()
        with executors.claimed(output, alone=here or not planned) as let_others_in:
            if here:
                for folder in (output, output / unit_context.UNITS):
                    files.remove_leftovers(folder, dead_only=True)
            plan = _plan(config, output, found, asked, vocab, shares)
            if config.only_plan:
                print(f"{output / PLAN}: {len(plan.units):,} units")
                return None
            if not here:
                let_others_in()
            _work(config, plan, output)
            missing = executors.missing(plan, output)
            if config.share:  # others do theirs: the manifest is for who comes after all of them
                print(f"{output}: share {config.share} is done, {len(missing):,} units are missing")
            if missing or config.share:
                return None
            manifest = finalize.finish(plan, output, config.max_bad_fraction)
    except OSError as error:
        raise InputError(
            f"{output} could not be written ({error.strerror or error}); it is not finished: "
            "make room and run the same command again"
        ) from error
    print(finalize.summary(plan, manifest, output, time.monotonic() - began))
    return manifest


def settings(
    config: PrepareConfig, names: list[str], vocab: Vocabulary, summary_ids: list[int]
) -> dict[str, Any]:
    """All that the shards depend on beside the corpus: not where files lie, nor the workers."""
    asked = {name: value for name, value in vars(config).items() if name not in NOT_ASKED}
    return asked | {
        "kinds": config.kinds_by_source(names),
        "summary_token_ids": summary_ids,
        "tokenizer": tokenization.fingerprint(vocab),
        "bos_and_eos": [vocab.bos_token_id, vocab.eos_token_id],
        "chat_template": (
            unit_context.chat_template_sha256(vocab, config.chat_date)
            if config.messages_field
            else ""
        ),
    }


def _plan(
    config: PrepareConfig,
    output: Path,
    found: list[Input],
    asked: dict[str, Any],
    vocab: Vocabulary,
    shares: dict[str, Fraction],
) -> Plan:
    """The folder's plan, made if there is none; or an `InputError` that says what has changed."""
    now = {name: version(name) for name in ("gem_ds", "tokenizers", "pyarrow", "numpy")}
    now["python"] = platform.python_version()
    if (output / PLAN).exists():
        plan = Plan.load(output)
        plan.check_same(output, found, asked)
        changed = [
            f"{name} {before} is {now.get(name)} now"
            for name, before in plan.versions.items()
            if now.get(name) != before
        ]
        if changed:
            raise InputError(
                f"{output} was begun with other versions ({', '.join(changed)}), which may encode "
                "otherwise; install those, or remove the folder"
            )
        return plan
    if config.share:
        raise InputError(
            f"{output} has no plan yet, and shares must be of one plan: first run the same command "
            "with --only-plan instead of --share"
        )
    _check_space(output, found, asked)
    largest = round(config.unit_megabytes * 1_000_000)
    for item in work_plan.uncut(found, largest):
        print(
            f"warning: {item.path} cannot be cut, since it is {item.compression or item.format}: "
            f"one worker does all of it ({item.size / 1e6:,.0f} MB); several smaller files, or "
            "files of JSON lines, would go faster",
            file=sys.stderr,
        )
    cut = work_plan.cut(found, functools.partial(_fields, asked), config.text_unit, largest)
    drawn: dict[str, mixture.Source] = {}
    if shares:
        cut, sizes = _counted(cut, found, asked, config.workers or process_pool.cores())
        drawn = mixture.sources(shares, sizes, config.mix_records, config.seed)
    shutil.rmtree(output / TOKENIZER, ignore_errors=True)
    tokenization.save(vocab, output / TOKENIZER)
    for path in [*(output / TOKENIZER).iterdir(), output / TOKENIZER]:
        files.sync(path)
    plan = Plan(asked, found, cut, drawn, now)
    plan.save(output)
    return plan


def _counted(
    cut: list[list[Part]], found: list[Input], asked: dict[str, Any], workers: int
) -> tuple[list[list[Part]], dict[str, int]]:
    """The parts with how many records of their source come before each; the sources' sizes.

    Worker processes count. Raises `InputError` for an input that cannot be read or counted.
    """
    counts: dict[int, list[int]] = {}
    task = functools.partial(_count, cut=cut, found=found, asked=asked)
    with tqdm(total=len(cut), desc="counting", unit="unit", disable=None) as bar:
        warn = functools.partial(tqdm.write, file=sys.stderr)
        done = process_pool.run(task, range(len(cut)), workers, "unit {}".format, bar.update, warn)
        for unit, found_there in done:
            counts[unit] = found_there
            bar.update()
    sizes: Counter[str] = Counter()
    counted: list[list[Part]] = []
    for i, unit_parts in enumerate(cut):
        counted.append([])
        for part, n in zip(unit_parts, counts[i], strict=True):
            source = found[part.input].source
            counted[-1].append(part._replace(first=sizes[source]))
            sizes[source] += n
    return counted, sizes


def _count(
    unit: int,
    _: process_pool.Tell,
    *,
    cut: list[list[Part]],
    found: list[Input],
    asked: dict[str, Any],
) -> list[int]:
    """The records of each part of a unit."""
    return [
        work_plan.count(item, part, _fields(asked, item), asked["text_unit"])
        for part in cut[unit]
        for item in [found[part.input]]
    ]


def _fields(asked: dict[str, Any], item: Input) -> list[str]:
    return unit_context.fields_of(asked, set(asked["kinds"][item.source]))


def _check_space(output: Path, found: list[Input], asked: dict[str, Any]) -> None:
    twice = max(shares.get(RECONSTRUCTION, 0.0) for shares in asked["kinds"].values())
    text = sum(work_plan.weight(item) for item in found)
    need = text * BYTES_PER_BYTE * (1 + twice) * asked["epochs"]
    free = shutil.disk_usage(output).free
    if free < need and not asked["mix"]:
        raise InputError(
            f"{output} has {free / 1e6:,.0f} MB free, the shards need about {need / 1e6:,.0f} MB; "
            "make room or give another --output"
        )


def _work(config: PrepareConfig, plan: Plan, output: Path) -> None:
    """Do what is missing, or have a cluster do it."""
    missing = executors.missing(plan, output)
    if config.executor == LOCAL:
        share = set(config.share_of(executors.in_order(plan)))
        mine = [n for n in missing if n in share]
        executors.do_units(plan, output, mine, config.workers or process_pool.cores())
        return
    executors.run(config, plan, output, missing)
    if config.executor == RAY:
        executors.raise_if_missing(plan, output)
