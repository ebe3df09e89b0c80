"""Trains and exports the base of a case by the project's own scripts, each in a forked process."""

import atexit
import contextlib
import io
import json
import os
import runpy
import shutil
import signal
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import bases_check
import bases_folder
from bases_cases import N_TOKENS, Case
from bases_causes import Base
from bases_check import Fault
from processes import free_port
from transformers.utils import logging

from gem_ds.corpus import train_tokenizer
from gem_ds.shards import prepare, unit_worker
from gem_ds.shards.config import PrepareConfig
from gem_ds.shards.work_plan import Plan

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 60.0  # that a script may take
TEXTS = [
    "Split the string at every occurrence of the separator, and return a list of all the parts.",
    "The words of the other text are many; they go on.",
    "A short text that stands by itself.",
]
KINDS = {True: "plain=0.3,continuation=0.7", False: "plain=1"}


def shards_of(work: Path, k: int, mixed: bool) -> Path:
    return work / f"shards-{k}-{'mixed' if mixed else 'plain'}"


def prepare_work(work: Path) -> None:
    """The tokenizer, rows for each k and corpus, and DeepSpeed's files of all cases."""
    train_tokenizer.save(
        train_tokenizer.train(
            [*TEXTS, train_tokenizer.__doc__ or "", unit_worker.__doc__ or ""] * 4, N_TOKENS
        ),
        work / "tok",
    )
    (work / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    for k in (1, 8):
        for mixed in (True, False):
            _shard(work, k, mixed)
    for stage in (2, 3):
        for bf16 in (True, False):
            told = json.loads((ROOT / "ds_configs" / f"zero{stage}.json").read_text())
            told["bf16"] = {"enabled": bf16}
            (work / f"zero{stage}-{bf16}.json").write_text(json.dumps(told))


def _shard(work: Path, k: int, mixed: bool) -> None:
    """As the command does, without its processes."""
    output = shards_of(work, k, mixed)
    config = PrepareConfig(
        *([str(work / "texts.jsonl")], str(work / "tok"), str(output)),
        row_length=bases_folder.ROW_LENGTH,
        kinds=KINDS[mixed],
        summary_tokens=k,
        min_prefix=2,
        min_suffix=2,
    )
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        prepare.prepare(replace(config, only_plan=True))
        plan = Plan.load(output)
        for unit in range(len(plan.units)):
            unit_worker.write_unit(unit, lambda _: None, folder=output, digest=plan.digest)
        prepare.prepare(config)


def try_case(case: Case, work: Path, folder: Path) -> dict[str, Any]:
    """What became of a case: its verdict, trained, refused or FAULT, and why."""
    began = time.monotonic()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    causes: list[str] = []
    try:
        base = bases_folder.write(case, folder / "base", work / "tok")
        causes = [cause.what for cause in base.causes]
        verdict, why = _outcome(case, base, work, folder)
    except Fault as fault:
        verdict, why = "FAULT", str(fault)
    except Exception as error:
        traceback.print_exc()
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        verdict, why = "FAULT", f"in the check: {type(error).__name__}: {error} ({place})"
    seconds = time.monotonic() - began
    why = bases_check.shortened(why)
    return {"verdict": verdict, "why": why, "causes": causes, "seconds": seconds}


def _outcome(case: Case, base: Base, work: Path, folder: Path) -> tuple[str, str]:
    shards = shards_of(work, case.k, case.mixed)
    run, export = folder / "run", folder / "export"
    flags = {
        "deepspeed": work / f"zero{case.stage}-{case.bf16}.json",
        "model": base.folder,
        "shards": shards,
        "output": run,
        "steps": 2 if case.moves else 1,
        "rows-per-step": 1,
        "recipe": case.recipe,
        "warmup-steps": 0,
        "save-every": 2,
    }
    if not case.moves:
        flags |= {"learning-rate": 1e-30, "contrastive-learning-rate": 1e-30}
    elif case.recipe == "paper":
        flags |= {"learning-rate": 1e-3}
    status, log = _script("launch/train.py", flags, folder / "train.log")
    if status:
        message = bases_check.message_of(log)
        return "refused", f"({bases_check.check_refusal(message, base)}) {message}"
    if not (run / "metrics.jsonl").exists():
        raise Fault("training ended well without a metric")
    flags = {"run": run, "output": export, "dtype": "bfloat16" if case.bf16 else "float32"}
    status, log = _script("launch/export.py", flags, folder / "export.log")
    if status:
        raise Fault(f"trained, and not exported: {bases_check.message_of(log)}")
    bases_check.check_trained(case, base, run, export, shards)
    return "trained", ""


def _script(name: str, flags: dict[str, Any], log: Path) -> tuple[int, str]:
    """Run a script of the project in a forked process; its status and what it said."""
    said = [text for flag, value in flags.items() for text in (f"--{flag}", str(value))]
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        _be_script(name, said, log)
    end = time.monotonic() + SECONDS
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise Fault(f"{name} did not end in {SECONDS:.0f} s")
        time.sleep(0.01)
    if os.WIFSIGNALED(status):
        raise Fault(f"{name} was killed by signal {os.WTERMSIG(status)}")
    return os.WEXITSTATUS(status), log.read_text(errors="replace")


def _be_script(name: str, flags: list[str], log: Path) -> None:
    code = 1
    try:
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        sys.argv = [name, *flags]
        runpy.run_path(str(ROOT / name), run_name="__main__")
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def be_case(case: Case, work: Path, folder: Path, kept: bool) -> None:
    """A process that tries a case and leaves ``result.json`` in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "case.log").open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    result = try_case(case, work, folder)
    if not kept:
        for name in ("base", "run", "export"):
            shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "result.json").write_text(json.dumps(result))
