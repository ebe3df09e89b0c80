"""Data preparation from end to end: a corpus in, a finished folder of shards out.

Reading (`sources`) and packing run in this process, decoding and encoding (`documents`) in a pool
of others. Results are taken in the order of the corpus, so the shards depend on the corpus, the
seed and the options, never on the number of workers.
"""

import contextlib
import fcntl
import functools
import json
import os
import platform
import random
import shutil
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gem_ds import documents, packing, pool, shards, sources, tokenization
from gem_ds.documents import PLAIN, RECONSTRUCTION, Batch, Document, Recipe
from gem_ds.errors import InputError
from gem_ds.shards import FileEntry, Manifest, Row, Shards
from gem_ds.sources import Block
from gem_ds.tally import QUARANTINE, Tally
from gem_ds.tokenization import Vocabulary

UNFINISHED = "unfinished.json"  # marks a folder as ours until the manifest is there
BYTES_PER_BYTE = (
    0.4  # of shards per byte of text, seen with an 8k vocabulary; larger ones need less
)
EXPANSION = 4  # bytes of text in a byte of compressed corpus


def _flag(default: Any, text: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": text, **more})


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class PrepareConfig:
    """What `prepare` is to do. The metadata of the fields makes the script's flags."""

    input: list[str] = field(
        metadata={"help": "corpus files or folders: .jsonl, .txt (also .gz, .zst) or .parquet"}
    )
    tokenizer: str = field(metadata={"help": "folder or hub name of the model's tokenizer"})
    output: str = field(metadata={"help": "folder for the shards, new or left by this command"})
    row_length: int = _flag(2048, "tokens in a packed row, summary and control tokens included")
    kinds: str = _flag("plain=0.8,continuation=0.2", "shares of the kinds of documents")
    summary_tokens: int = _flag(1, "number k of summary tokens")
    text_field: str = _flag("text", "field or column of the text")
    context_field: str = _flag("context", "field of the context, for kind pair")
    answer_field: str = _flag("answer", "field of the answer, for kind pair")
    text_unit: str = _flag("paragraph", "what a record of plain text is", choices=sources.UNITS)
    min_prefix: int = _flag(8, "least tokens of text before a continuation's summary tokens")
    min_suffix: int = _flag(8, "least tokens of text after them")
    seed: int = _flag(0, "seed of kinds, cuts and the order of rows")
    workers: int = _flag(_cores(), "processes that encode")
    max_bad_fraction: float = _flag(0.001, "share of undecodable records above which to fail")


def prepare(config: PrepareConfig) -> Manifest:
    """Shard a corpus into ``config.output`` and say on stdout what came of it.

    A folder that the same configuration has finished is left as it is. Raises `InputError` for
    whatever is wrong with corpus, tokenizer, options or disk; the folder then has no manifest, and
    the next run starts it again.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process is one core
    files = sources.find(config.input)
    base = tokenization.load(config.tokenizer)
    vocab, summary_ids = tokenization.add_summary_tokens(base, config.summary_tokens)
    recipe = recipe_of(config, vocab, summary_ids)
    asked = _asked(config, files, vocab, recipe)
    output = Path(config.output)
    if (output / shards.MANIFEST).exists():
        manifest = Shards(output).manifest
        changed = [name for name in asked if asked[name] != manifest.config.get(name)]
        if changed:
            raise InputError(
                f"{output} was finished with other settings ({', '.join(changed)}); "
                "give another --output, or remove the folder"
            )
        print(f"{output} is already finished with these settings; nothing to do")
        return manifest
    try:
        with _claimed(output, asked):
            _check_space(output, files, recipe)
            return _write(config, files, vocab, recipe, asked)
    except OSError as error:
        raise InputError(
            f"{output} could not be written ({error.strerror or error}); it is not finished: "
            "make room and run the same command again"
        ) from error


def recipe_of(config: PrepareConfig, vocab: Vocabulary, summary_ids: list[int]) -> Recipe:
    """The checked recipe. Raises `InputError` for options that cannot be met together."""
    kinds = documents.parse_kinds(config.kinds)
    if config.summary_tokens < 0 or (not summary_ids and set(kinds) != {PLAIN}):
        raise InputError(
            f"--summary-tokens {config.summary_tokens} with --kinds {config.kinds}: every kind but "
            "plain needs at least one summary token"
        )
    for name, least in {"min_prefix": 1, "min_suffix": 1, "workers": 1, "seed": 0}.items():
        if getattr(config, name) < least:
            raise InputError(f"--{name.replace('_', '-')} must be at least {least}")
    needed = 2 + len(summary_ids) + config.min_prefix + config.min_suffix
    if config.row_length < needed:
        raise InputError(f"--row-length {config.row_length} is too short; give at least {needed}")
    return Recipe(
        row_length=config.row_length,
        kinds=kinds,
        min_prefix=config.min_prefix,
        min_suffix=config.min_suffix,
        summary_tokens=tuple(summary_ids),
        bos_token_id=vocab.bos_token_id,
        eos_token_id=vocab.eos_token_id,
        text_field=config.text_field,
        context_field=config.context_field,
        answer_field=config.answer_field,
        seed=config.seed,
    )


def _asked(
    config: PrepareConfig, files: list[Path], vocab: Vocabulary, recipe: Recipe
) -> dict[str, Any]:
    """All that the shards depend on, and nothing else: not where files lie, nor the workers."""
    names = {f.name for f in fields(config)} - {"input", "output", "workers", "tokenizer"}
    asked = {name: getattr(config, name) for name in sorted(names)}
    return asked | {
        "kinds": recipe.kinds,
        "tokenizer": tokenization.fingerprint(vocab),
        "bos_and_eos": [recipe.bos_token_id, recipe.eos_token_id],
        "input": [{"name": path.name, "bytes": path.stat().st_size} for path in files],
    }


@contextlib.contextmanager
def _claimed(output: Path, asked: dict[str, Any]) -> Iterator[None]:
    """The folder, ours alone and cleared of what an unfinished run left in it.

    Raises `InputError` if it holds files that are not ours, or another run is at it.
    """
    output.mkdir(parents=True, exist_ok=True)
    marker = output / UNFINISHED
    if not marker.exists() and any(output.iterdir()):
        raise InputError(f"{output} holds files that are not ours; give a new --output")
    with marker.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another run is writing {output}; wait for it") from error
        except OSError:
            pass  # a file system without locks
        for path in [*output.glob("shard-*.parquet*"), output / QUARANTINE]:
            path.unlink(missing_ok=True)
        shutil.rmtree(output / shards.TOKENIZER, ignore_errors=True)
        lock.truncate(0)
        lock.write(json.dumps(asked, indent=1))
        lock.flush()
        yield
        marker.unlink()


def _check_space(output: Path, files: list[Path], recipe: Recipe) -> None:
    packed = {path for path in files if sources.is_compressed(path) or path.suffix == ".parquet"}
    text = sum(path.stat().st_size * (EXPANSION if path in packed else 1) for path in files)
    need = text * BYTES_PER_BYTE * (1 + recipe.kinds.get(RECONSTRUCTION, 0.0))
    free = shutil.disk_usage(output).free
    if free < need:
        raise InputError(
            f"{output} has {free / 1e6:,.0f} MB free, the shards need about {need / 1e6:,.0f} MB; "
            "make room or give another --output"
        )


_vocabulary = functools.lru_cache(1)(tokenization.load)


def _encode(block: Block, recipe: Recipe, folder: Path) -> Batch:
    """What a worker does; it loads the tokenizer, with its guard, once."""
    return documents.documents(list(block.records()), recipe, _vocabulary(folder))


def _write(
    config: PrepareConfig,
    files: list[Path],
    vocab: Vocabulary,
    recipe: Recipe,
    asked: dict[str, Any],
) -> Manifest:
    started = time.monotonic()
    output = Path(config.output)
    tokenization.save(vocab, output / shards.TOKENIZER)
    told = Tally(output / QUARANTINE, config.max_bad_fraction)
    n_bytes = sum(path.stat().st_size for path in files)
    bar = tqdm(
        total=n_bytes,
        unit="B",
        unit_scale=True,
        desc="sharding",
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )

    def stream() -> Iterator[Document]:
        task = functools.partial(_encode, recipe=recipe, folder=output / shards.TOKENIZER)
        raw = sources.blocks(files, recipe.fields(), config.text_unit)
        for block, batch in pool.ordered(task, raw, config.workers, str):
            told.add(batch)
            bar.update(block.position - bar.n)
            yield from batch.documents

    def packed() -> Generator[Row, None, None]:
        for i, window in enumerate(packing.windows(stream())):
            yield from packing.rows(
                window, config.row_length, random.Random(f"{config.seed} rows {i}")
            )

    entries: list[FileEntry] = []
    with bar, contextlib.closing(packed()) as todo:
        while part := list(islice(todo, shards.rows_per_file(config.row_length))):
            path = output / f"shard-{len(entries):05d}.parquet"
            entries.append(shards.write_file(path, part))
    told.check()
    assert sum(entry["n_documents"] for entry in entries) == told.documents.total()
    manifest = Manifest(
        row_length=config.row_length,
        n_rows=sum(entry["n_rows"] for entry in entries),
        n_documents=sum(entry["n_documents"] for entry in entries),
        n_tokens=sum(entry["n_tokens"] for entry in entries),
        n_targets=sum(entry["n_targets"] for entry in entries),
        summary_tokens=list(recipe.summary_tokens),
        bos_token_id=recipe.bos_token_id,
        eos_token_id=recipe.eos_token_id,
        vocab_size=vocab.size,
        base_tokenizer_sha256=tokenization.fingerprint(vocab, summary_tokens=False),
        tokenizer_sha256=tokenization.fingerprint(vocab),
        seed=config.seed,
        kinds=recipe.kinds,
        counts=told.counts(),
        files=entries,
        config=asked,
        versions={name: version(name) for name in ("gem_ds", "tokenizers", "pyarrow", "numpy")}
        | {"python": platform.python_version()},
    )
    manifest.save(output)
    print(summary(manifest, output, n_bytes, time.monotonic() - started))
    return manifest


def summary(manifest: Manifest, output: Path, n_bytes: int, seconds: float) -> str:
    """The closing words."""
    counts = manifest.counts
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in counts["documents"].items() if n)
    skipped = sum(counts["skipped"].values())
    why = ", ".join(f"{n:,} {reason}" for reason, n in counts["skipped"].items())
    fill = manifest.n_tokens / (manifest.n_rows * manifest.row_length)
    lines = [
        f"records in  {counts['documents_in']:,} = {counts['records_written']:,} written + "
        f"{skipped:,} skipped" + (f" ({why}; see {output / QUARANTINE})" if why else ""),
        f"documents   {manifest.n_documents:,}: {kinds}",
        *(f"            {n:,} {name.replace('_', ' ')}" for name, n in counts["notes"].items()),
        f"tokens      {manifest.n_tokens:,}, of which {manifest.n_targets:,} are targets",
        f"rows        {manifest.n_rows:,} of {manifest.row_length:,} tokens, {fill:.2%} filled, "
        f"{len(manifest.files)} files",
        f"{output} is finished: {seconds:.1f} s, {n_bytes / 1e6 / seconds:.1f} MB/s of corpus",
    ]
    return "\n".join(lines)
