"""Damaged exports: is each refused by the name of its file, and what does it cost to look?

    python benchmarks/damaged_exports.py
    python benchmarks/damaged_exports.py --cost     # with a model of 1.2 billion parameters

Every file of two exports, one with an adapter and one of several files of weights, is damaged in
every way that its kind allows, and files are added. Each damaged copy is loaded by GemModel and by
SentenceTransformer: it has to be refused in one sentence that names the file, or, where the file
says nothing of vectors, to give the same ones. Exit status 1 if one is not.
"""

import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from damages import DAMAGES, SURPLUS
from encode_evaluate_data import tiny_export
from sentence_transformers import SentenceTransformer
from start_checks import VOCABULARY, write_base
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from gem_ds import GemModel
from gem_ds.corpus import tokenization, train_tokenizer
from gem_ds.errors import InputError, run
from gem_ds.export import gem_seal
from gem_ds.export.export import export
from gem_ds.export.gem_config import GemConfig
from gem_ds.flags import Parser, whole

TEXTS = ["A short one.", "The words of this text are many; they go on and on."]
# Read by SentenceTransformers and Python before the export's own code can look at anything.
BEFORE = ("modules.json", "config_sentence_transformers.json", "gem_embedding.py", "gem_seal.py")
Load = Callable[[Path], Any]


def gem(folder: Path) -> Any:
    return GemModel.from_pretrained(folder).encode(TEXTS)


def stock(folder: Path) -> Any:
    how = {"trust_remote_code": True, "device": "cpu", "local_files_only": True}
    return SentenceTransformer(str(folder / "model-embed"), **how).encode(TEXTS)


def damaged(
    good: Path, other: Path, work: Path, part: str, every: int
) -> Iterator[tuple[str, str, Path]]:
    """(file, damage, the folder of a copy) for damages to the files of a part of an export."""
    files = sorted(p for p in (good / part).rglob("*") if p.is_file())
    cases = [(p.relative_to(good), d) for p in files for d in DAMAGES.values() if d.fits(p)]
    cases += [(Path(part) / name, d) for name, d in SURPLUS.items() if d.fits(good / part / name)]
    for number, (name, damage) in list(enumerate(cases))[::every]:
        folder = work / f"{part}-{number}"
        shutil.copytree(good, folder)
        damage.do(folder / name, other / name)
        yield str(name), damage.name, folder
        shutil.rmtree(folder)


def outcome(load: Load, folder: Path, name: str, expected: Any) -> str:
    try:
        vectors = load(folder)
    except ValueError as error:
        told = str(error)
        ours = isinstance(error, InputError) or load is stock
        if ours and Path(name).name in told and "\n" not in told:
            return "refused by name"
        return by_others(load, name, error)
    except Exception as error:
        return by_others(load, name, error)
    return "harmless" if np.allclose(vectors, expected, atol=1e-6) else "WRONG VECTORS"


def by_others(load: Load, name: str, error: Exception) -> str:
    if load is stock and Path(name).name in BEFORE:
        return "refused by SentenceTransformers"
    return f"UNNAMED: {type(error).__name__}: {str(error)[:200]!r}"


def tried(work: Path, every: int) -> int:
    """Try all damages, print a table; how many ended badly."""
    goods = {"adapter": {"k": 2, "adapter": True}, "shards": {"k": 3, "shard_gb": 2e-5}}
    table: Counter[tuple[str, str, str]] = Counter()
    bad = []
    for title, how in goods.items():
        good = tiny_export(work / title / "good", **how)
        other = tiny_export(work / title / "other", **how, seed=1)
        for load, parts in ((gem, ("model", "adapter")), (stock, ("model-embed",))):
            expected = load(good)
            for part in parts if (good / parts[-1]).is_dir() else parts[:1]:
                for name, damage, folder in damaged(good, other, work / title, part, every):
                    found = outcome(load, folder, name, expected)
                    table[load.__name__, damage, found.partition(":")[0]] += 1
                    if found.isupper() or found[:5].isupper():
                        bad.append(f"{title}, {load.__name__}: {name}, {damage}: {found}")
    outcomes = sorted({found for *_, found in table})
    print(f"{'loaded by':10}{'damage':28}" + "".join(f"{x:>34}" for x in outcomes))
    for loader, damage in sorted({(a, b) for a, b, _ in table}):
        cells = "".join(f"{table[loader, damage, x] or '':>34}" for x in outcomes)
        print(f"{loader:10}{damage:28}{cells}")
    totals = {x: sum(n for key, n in table.items() if key[2] == x) for x in outcomes}
    print(
        f"{sum(totals.values())} damaged exports: "
        + ", ".join(f"{n} {x}" for x, n in totals.items())
    )
    print("\n".join(bad))
    return len(bad)


def cost(work: Path, repeats: int) -> None:
    """What the check is of loading an export of 1.2 billion parameters on this CPU, in bf16."""
    write_base(work / "base")
    lm = AutoModelForCausalLM.from_pretrained(work / "base", dtype=torch.bfloat16)
    train_tokenizer.save(train_tokenizer.train(TEXTS * 50, 280), work / "tok")
    vocab, summary = tokenization.add_summary_tokens(tokenization.load(work / "tok"), 1)
    tokenization.save(vocab, work / "tokenizer")
    weights = {n: x for n, x in lm.state_dict().items() if n not in lm.all_tied_weights_keys}
    told = GemConfig(tuple(summary), "isolated", "random", 0, "0" * 64)
    began = time.perf_counter()
    export(weights, lm.config, work / "tokenizer", told, work / "export")
    exported = time.perf_counter() - began
    shutil.rmtree(work / "base")
    del lm, weights
    model = work / "export" / "model"
    gb = sum(entry["bytes"] for entry in gem_seal.read(model).values()) / 1e9

    def seconds(call: Callable[[], Any]) -> float:
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        return sorted(times)[repeats // 2]

    every = seconds(lambda: gem_seal.check(model, whole=True))
    cheap = seconds(lambda: gem_seal.check(model))
    load = seconds(lambda: GemModel.from_pretrained(work / "export"))
    print(
        f"a Llama of {VOCABULARY} tokens and 1.2 billion parameters, {gb:.2f} GB, "
        f"{os.cpu_count()} cores, median of {repeats}:\n"
        f"sizes and samples  {1000 * cheap:.1f} ms, {cheap / load:.2%} of a load's {load:.2f} s\n"
        f"all hashes         {every:.2f} s, {every / gb:.2f} s a GB\n"
        f"export             {exported:.1f} s"
    )


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--cost", action="store_true", help="measure that instead")
    parser.add_argument("--every", type=whole(1), default=1, help="do each N-th damage alone")
    parser.add_argument("--repeats", type=whole(1, 100), default=5, help="of a measurement")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        os.environ["HF_HUB_OFFLINE"] = "1"
        if args.cost:
            cost(Path(folder), args.repeats)
        elif tried(Path(folder), args.every):
            sys.exit(1)


if __name__ == "__main__":
    run(main)
