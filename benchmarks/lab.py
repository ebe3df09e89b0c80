"""Recipes compared on one small base model: every run of `lab_runs`, measured, in one table.

    python benchmarks/lab.py --base BASE --corpus FILE --dev FOLDER --out runs/lab

A run is real commands: data_prep/shard.py, launch/train.py, launch/export.py. What they make lies
in <out>/shards, trainings and exports, in folders named by a digest of all that it depends on:
flags, base, corpus, seed. So what runs have in common is made once, what is finished is not made
again, what was interrupted goes on, and what is defined otherwise is made anew; changes of the
code are not noticed. --results has a file for each run and seed, which is all that the table needs:
a run whose result is there is not made again, on whatever machine it was made. So that machines
agree, CPUs compute in fp32, those too that multiply bf16; GPUs compute in bf16.
"""

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lab_measures
import lab_report
import torch
from lab_measures import Dev
from lab_runs import TABLE, Run, Table
from processes import free_port

from gem_ds import errors, files
from gem_ds.errors import InputError
from gem_ds.flags import Parser, whole

ROOT = Path(__file__).resolve().parent.parent
DEEPSPEED = ROOT / "ds_configs" / "zero3.json"
RESULTS = ROOT / "benchmarks" / "results" / "lab"
BASE = "base"  # the name of the training-free baselines
LIBRARIES = ("torch", "deepspeed", "transformers")


class Lab:
    """Runs of one table on one base model and corpus."""

    def __init__(
        self, table: Table, base: Path, corpus: Path, dev: Path, out: Path, results: Path
    ) -> None:
        """Raises `InputError` for what is missing."""
        for path in (base, corpus):
            if not path.exists():
                raise InputError(f"{path} is not there; name a folder or file that is")
        self.table, self.base, self.corpus = table, base, corpus
        self.out, self.results = out, results
        self.dev = Dev(dev)
        self.base_digest, self.corpus_digest = content(base), content(corpus)
        measured = [content(dev / name) for name in lab_measures.FILES]
        self.measured = {"dev": measured, "measures": lab_measures.VERSION}
        self.bf16 = torch.cuda.is_available()
        self.deepspeed = json.loads(DEEPSPEED.read_text()) | {"bf16": {"enabled": self.bf16}}
        self.done: list[str] = []  # what was made or measured, for people and tests

    def baselines(self) -> dict[str, Any]:
        """The result of the base without training."""

        def measure() -> dict[str, Any]:
            figures = lab_measures.baselines(str(self.base), self.dev)
            return {"figures": figures, "n_sections": len(self.dev.texts)}

        return self._result(BASE, {"base": self.base_digest}, measure)

    def run(self, run: Run, seed: int) -> dict[str, Any]:
        """The result of a run with a seed."""
        shards, training, export = self._definitions(run, seed)

        def measure() -> dict[str, Any]:
            made = self._export(run, seed, shards, training, export)
            trained = self._folder("trainings", training) / "run"
            lines = (trained / "metrics.jsonl").read_text().splitlines()
            steps = [json.loads(line) for line in lines]
            return {
                "precision": "bf16" if self.bf16 else "fp32",
                "figures": lab_measures.trained(made, str(self.base), self.dev),
                "training_seconds": sum(step["speed/step_seconds"] for step in steps),
                "training_tokens": sum(step["data/tokens"] for step in steps),
                "training_gib": max(step["memory/gib"] for step in steps),
            }

        return self._result(_name(run, seed), export, measure)

    def found(self, run: Run) -> list[dict[str, Any]]:
        """The results that there are of a run as it is defined now, one a seed."""
        results = []
        for path in self.results.glob(f"{_slug(run.name)}-seed-*.json"):
            result = json.loads(path.read_text())
            export = self._definitions(run, result["definition"]["training"]["seed"])[-1]
            if result["digest"] == digest(export | self.measured):
                results.append(result)
        return results

    def _definitions(self, run: Run, seed: int) -> tuple[dict[str, Any], ...]:
        """What the shards, the training and the export of a run depend on."""
        shards = {
            "flags": shlex.split(f"{self.table.shard} {run.shard}"),
            "corpus": self.corpus_digest,
            "tokenizer": self.base_digest,
        }
        training = {
            "flags": shlex.split(f"{self.table.train} {run.train}"),
            "shards": shards,
            "base": self.base_digest,
            "deepspeed": self.deepspeed,
            "ranks": run.ranks,
            "seed": seed,
        }
        return shards, training, {"flags": shlex.split(run.export), "training": training}

    def _export(self, run: Run, seed: int, shards: Any, training: Any, export: Any) -> Path:
        """Make what is missing of a run; its exported model."""

        def sharding(folder: Path) -> list[Any]:
            told = ["--input", self.corpus, "--tokenizer", self.base, "--output", folder / "shards"]
            return [*_python("data_prep/shard.py"), *told]

        def learning(folder: Path) -> list[Any]:
            _write(folder / "deepspeed.json", self.deepspeed)
            told = ["--deepspeed", folder / "deepspeed.json", "--model", self.base]
            told += ["--shards", sharded / "shards", "--output", folder / "run"]
            told += ["--resume", "auto", "--seed", seed]
            return [*_launcher(run.ranks), *told]

        def exporting(folder: Path) -> list[Any]:
            shutil.rmtree(folder / "gem", ignore_errors=True)  # whole, but not known to be
            told = ["--run", trained / "run", "--output", folder / "gem"]
            return [*_python("launch/export.py"), *told]

        sharded = self._made("shards", shards, sharding)
        trained = self._made("trainings", training, learning)
        return self._made("exports", export, exporting) / "gem"

    def _folder(self, kind: str, definition: dict[str, Any]) -> Path:
        return self.out / kind / digest(definition)[:16]

    def _made(
        self, kind: str, definition: dict[str, Any], command: Callable[[Path], list[Any]]
    ) -> Path:
        """The folder of what a command makes with the definition's flags; made unless it is there.

        Its ``definition.json``, written last, says that it is finished.
        """
        folder = self._folder(kind, definition)
        if (folder / "definition.json").exists():
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        line = [str(part) for part in command(folder) + _last(definition["flags"])]
        print(f"$ {shlex.join(line)}", flush=True)
        with (folder / "log.txt").open("a") as log:
            done = subprocess.run(line, stdout=log, stderr=log, env=_environment())
        if done.returncode:
            said = (folder / "log.txt").read_text().strip().splitlines()
            raise InputError(f"exit status {done.returncode} ({said[-1]}); see {folder}/log.txt")
        _write(folder / "definition.json", {**definition, "command": line})
        self.done.append(kind)
        return folder

    def _result(
        self, name: str, definition: dict[str, Any], measure: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """The result in a file, measured unless it is there and of this very definition."""
        path = self.results / f"{_slug(name)}.json"
        wanted = digest(definition | self.measured)
        if path.exists() and json.loads(path.read_text())["digest"] == wanted:
            return dict(json.loads(path.read_text()))
        print(f"\n{name}", flush=True)
        began = time.monotonic()
        result = {
            **measure(),
            "name": name,
            "digest": wanted,
            "definition": definition,
            "versions": {x: importlib.metadata.version(x) for x in LIBRARIES},
            "hardware": hardware(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, result)
        self.done.append(name)
        print(f"{result['figures']}\n({time.monotonic() - began:.0f} s)", flush=True)
        return result


def content(path: Path) -> str:
    """sha256 of a file, or of the names and files of a folder."""
    if path.is_file():
        return files.sha256(path)
    inside = sorted(each for each in path.rglob("*") if each.is_file())
    return digest({str(each.relative_to(path)): files.sha256(each) for each in inside})


def digest(definition: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()


def hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    told = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)", told.read_text() if told.exists() else "", re.M)
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def _name(run: Run, seed: int) -> str:
    return f"{run.name}, seed {seed}"


def _slug(name: str) -> str:
    """A name of a file: letters, digits and points, joined by dashes."""
    return re.sub(r"[^\w.]+", "-", name).strip("-")


def _last(flags: list[str]) -> list[str]:
    """Flags with their values; of one that is there twice the later, which wins."""
    groups: dict[str, list[str]] = {}
    for part in flags:
        if part.startswith("--"):
            name = part
            groups[name] = []
        groups[name].append(part)
    return [part for group in groups.values() for part in group]


def _python(script: str) -> list[Any]:
    return [sys.executable, ROOT / script]


def _launcher(ranks: int) -> list[Any]:
    if ranks == 1:
        return _python("launch/train.py")
    launcher = [sys.executable, Path(sys.executable).with_name("deepspeed"), "--num_gpus", ranks]
    return [*launcher, "--master_port", free_port(), ROOT / "launch/train.py"]


def _environment() -> dict[str, str]:
    """For the commands: a port of their own, and the CPU where there is no GPU."""
    own = {} if torch.cuda.is_available() else {"DS_ACCELERATOR": "cpu"}
    return {**os.environ, **own, "MASTER_PORT": str(free_port())}


def _write(path: Path, value: Any) -> None:
    with files.replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=1) + "\n")


def main(arguments: list[str], table: Table = TABLE) -> Lab:
    """Do the runs that the flags name, and write the report of all that there are."""
    parser = Parser(__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--corpus", type=Path, required=True, help="text to train on")
    parser.add_argument(
        "--dev", type=Path, required=True, help=f"folder with {', '.join(lab_measures.FILES)}"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/lab"), help="default: %(default)s")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="a file for each run; default: %(default)s"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"runs, or {BASE!r} for none")
    parser.add_argument("--seeds", type=whole(1), help="of every run; default: as the table says")
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "results.md")
    args = parser.parse_args(arguments)
    names = [run.name for run in table.runs]
    unknown = set(args.only or []) - {BASE, *names}
    if unknown:
        raise InputError(f"--only {unknown.pop()!r}: there are {BASE}, {', '.join(names)}")
    lab = Lab(table, args.base, args.corpus, args.dev, args.out, args.results)
    base = lab.baselines()
    failed = []
    for run in table.runs:
        for seed in range(args.seeds or run.seeds) if run.name in (args.only or names) else ():
            try:
                lab.run(run, seed)
            except InputError as error:  # the other runs may do better
                failed.append(f"{_name(run, seed)}: {error}")
                print(f"FAILED {failed[-1]}", flush=True)
    results = {run.name: lab.found(run) for run in table.runs}
    command = ["benchmarks/lab.py", *arguments]
    args.report.write_text(lab_report.text(command, table, base, results))
    print(f"\n{args.report}")
    if failed:
        raise InputError(f"{len(failed)} runs failed, the first: {failed[0]}")
    return lab


if __name__ == "__main__":
    errors.run(lambda: main(sys.argv[1:]))
