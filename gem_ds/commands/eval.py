"""Score a model on the packages the field uses, and compare scores.

    python launch/run_eval.py mteb --model exports/gem --tasks gem16 --output results
    python launch/run_eval.py mmlu --model exports/gem --output results
    python launch/run_eval.py lm --model exports/gem --tasks hellaswag arc_easy --output results
    python launch/run_eval.py reconstruct --model exports/gem --input texts.jsonl --output results
    python launch/run_eval.py compare results:base results:gem

Results that are there stay, so the same command goes on where it was interrupted.
docs/evaluation.md tells of data without a network, of tasks of your own, and of clusters.
"""

import sys
from pathlib import Path
from typing import Any

from gem_ds.errors import extra
from gem_ds.flags import SEEDS, Parser, whole

DTYPES = ("bfloat16", "float16", "float32")


def parser() -> Parser:
    root = Parser(__doc__)
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    model = Parser(add_help=False)
    model.add_argument(
        "--model", type=Path, required=True, metavar="FOLDER", help="what launch/export.py wrote"
    )
    model.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="of results")
    tasks = Parser(add_help=False)
    tasks.add_argument(
        "--data", type=Path, metavar="FOLDER", help="datasets and tasks here; default: the hub"
    )
    tasks.add_argument(
        "--share", metavar="I/N", help="only the I-th of N shares of the tasks, from 0"
    )
    tasks.add_argument(
        "--dtype", choices=DTYPES, help="default: the weights' own; on a CPU float32"
    )

    one = commands.add_parser("mteb", parents=[model, tasks], help="embeddings, by mteb")
    one.add_argument(
        "--tasks",
        nargs="+",
        required=True,
        metavar="NAME",
        help="mteb's names, gem16 (the paper's), eng-v2, or folders in --data",
    )
    one.add_argument("--batch-tokens", type=whole(1), default=8192, metavar="N", help="at once")
    one.add_argument("--max-length", type=whole(1), metavar="N", help="tokens kept of a text; all")
    one.add_argument(
        "--truncate-dim", type=whole(1), metavar="N", help="first dimensions kept; all"
    )
    one.add_argument("--prompts", type=Path, metavar="FILE", help="JSON: by task, type or kind")

    for name, what in (("mmlu", "MMLU, five shots, by lm-eval"), ("lm", "any task of lm-eval")):
        one = commands.add_parser(name, parents=[model, tasks], help=what)
        one.add_argument(
            "--batch-size", type=whole(1), default=8, metavar="N", help="texts at once"
        )
        one.add_argument("--limit", type=whole(1), metavar="N", help="questions a task; all")
        if name == "mmlu":
            one.add_argument("--subjects", nargs="+", metavar="NAME", help="default: all 57")
        else:
            one.add_argument("--tasks", nargs="+", required=True, metavar="NAME")
            one.add_argument("--include-path", type=Path, metavar="FOLDER", help="YAML tasks")
            one.add_argument(
                "--num-fewshot", type=whole(0), metavar="N", help="default: the task's"
            )

    one = commands.add_parser(
        "reconstruct", parents=[model], help="texts from their summary tokens alone"
    )
    one.add_argument(
        "--input", type=Path, required=True, metavar="FILE", help="one text a line, or JSONL"
    )
    one.add_argument("--field", default="text", metavar="NAME", help="of JSONL")
    one.add_argument(
        "--lengths",
        nargs="+",
        type=whole(1),
        default=[10, 30, 100],
        metavar="N",
        help="tokens; default: 10 30 100",
    )
    one.add_argument("--limit", type=whole(1), default=1000, metavar="N", help="texts")

    one = commands.add_parser("compare", help="a table of results, before and after")
    one.add_argument(
        "results",
        nargs="+",
        metavar="FOLDER[:MODEL]",
        help="what the other commands wrote; the first is what the others are compared with",
    )
    one.add_argument("--output", type=Path, metavar="NAME", help="writes NAME.md and NAME.json")
    one.add_argument(
        "--resamples",
        type=whole(1, 10**7),
        default=9999,
        metavar="N",
        help="of the items, for the intervals",
    )
    one.add_argument("--seed", type=whole(0, SEEDS), default=0, help="of that")
    return root


def main() -> None:
    args = parser().parse_args()
    {
        "mteb": embed,
        "mmlu": generate,
        "lm": generate,
        "reconstruct": reconstruct,
        "compare": compared,
    }[args.command](args)


def embed(args: Any) -> None:
    from gem_ds.evaluation import result_files  # after the arguments, so that help comes at once

    with extra("eval", "scoring by mteb"):
        from gem_ds.evaluation import mteb_runner, mteb_tasks

    model = result_files.candidate(args.model)
    tasks = result_files.share_of(mteb_tasks.select(args.tasks, args.data), args.share)
    prompts = mteb_runner.read_prompts(args.prompts, tasks) if args.prompts else {}
    settings = mteb_runner.Settings(prompts, args.max_length, args.truncate_dim, args.dtype)
    progress = sys.stderr.isatty()
    mteb_runner.run(model, tasks, args.output, settings, args.batch_tokens, progress)


def generate(args: Any) -> None:
    from gem_ds.evaluation import result_files

    with extra("eval", "scoring by lm-eval"):
        from gem_ds.evaluation import lm_eval_runner

    is_mmlu = args.command == "mmlu"
    model = result_files.candidate(args.model)
    shots = lm_eval_runner.SHOTS if is_mmlu else args.num_fewshot
    settings = lm_eval_runner.Settings(shots, args.limit, args.dtype, args.batch_size)
    tasks = lm_eval_runner.manager(None if is_mmlu else args.include_path)
    scorer = lm_eval_runner.Scorer(model, tasks, settings)
    names = lm_eval_runner.subjects(tasks, args.subjects) if is_mmlu else args.tasks
    units = result_files.share_of(lm_eval_runner.select(tasks, names, args.data), args.share)
    kept = lm_eval_runner.run(scorer, units, args.output)
    if is_mmlu and args.share is None:
        print(f"MMLU, mean of {len(kept)} subjects: {100 * lm_eval_runner.macro_average(kept):.2f}")


def reconstruct(args: Any) -> None:
    from gem_ds.evaluation import evaluate, reconstruction, result_files

    model = result_files.candidate(args.model)
    about = (args.lengths, args.field, args.limit)
    found = reconstruction.run(model, args.input, args.output, *about)
    shares = ("exact", "in_place", "overlap")
    rows = [[n, str(x["texts"]), *(f"{x[s]:.3f}" for s in shares)] for n, x in found.items()]
    print(evaluate.table(["tokens", "texts", *(s.replace("_", " ") for s in shares)], rows))


def compared(args: Any) -> None:
    from gem_ds.evaluation.compare import compare

    table = compare(args.results, args.resamples, args.seed)
    print(table.markdown())
    if args.output:
        table.write(args.output)
