"""Exports in tools as they come: generating, mteb, lm-eval. SentenceTransformers has its own tests
in test_export and test_gem_embedding; what needs the hub is done on files here."""

import json
from pathlib import Path
from typing import Any

import lm_eval
import mteb
import pytest
import torch
from datasets import Dataset, DatasetDict
from exports import TEXTS
from lm_eval.tasks import TaskManager
from mteb.abstasks.sts import AbsTaskSTS
from sentence_transformers import SentenceTransformer
from test_gem_embedding import exported
from transformers import AutoModelForCausalLM, AutoTokenizer

CHOICES = """\
task: choices
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
"""


@pytest.fixture(scope="module")
def made(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(an export with an adapter, the base that it was made of with the base's tokenizer)."""
    work = tmp_path_factory.mktemp("tools")
    folder = exported(work, tokenizer_dir)
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    base.resize_token_embeddings(400, mean_resizing=False)
    base.generation_config.suppress_tokens = None
    base.save_pretrained(work / "base")
    AutoTokenizer.from_pretrained(tokenizer_dir).save_pretrained(work / "base")
    return folder, work / "base"


def test_it_generates_what_the_base_does(made: tuple[Path, Path]) -> None:
    written = []
    for folder in (made[0] / "model", made[1]):
        lm = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        asked = tokenizer("Split the string", return_tensors="pt")
        ids = lm.generate(**asked, max_new_tokens=20, do_sample=False)
        written.append(ids[0].tolist())
    assert written[0] == written[1]
    assert len(set(written[0])) > 3


class Similarity(AbsTaskSTS):
    """Pairs of texts with the similarity that people gave them."""

    metadata = mteb.TaskMetadata(
        name="LocalPairs",
        description="A few pairs.",
        reference=None,
        dataset={"path": "local", "revision": "1"},
        type="STS",
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="cosine_spearman",
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        sample_creation=None,
        bibtex_citation=None,
    )
    min_score = 0
    max_score = 5

    def load_data(self, **_: Any) -> None:
        rows = {"sentence1": TEXTS * 2, "sentence2": TEXTS[1:] + TEXTS + TEXTS[:1]}
        rows |= {"score": [float(i % 6) for i in range(len(TEXTS) * 2)]}
        self.dataset = DatasetDict({"test": Dataset.from_dict(rows)})
        self.data_loaded = True


def test_mteb_measures_it(made: tuple[Path, Path]) -> None:
    folder = str(made[0] / "model-embed")
    embedder = SentenceTransformer(folder, device="cpu", trust_remote_code=True, truncate_dim=16)
    results = mteb.evaluate(embedder, Similarity(), cache=None, encode_kwargs={"batch_size": 4})
    (scores,) = results[0].scores["test"]
    a, b = (embedder.encode(x) for x in (TEXTS * 2, TEXTS[1:] + TEXTS + TEXTS[:1]))
    cosines = torch.nn.functional.cosine_similarity(torch.tensor(a), torch.tensor(b))
    wanted = torch.tensor([float(i % 6) for i in range(len(TEXTS) * 2)])
    assert a.shape == (12, 16)
    assert scores["cosine_pearson"] == pytest.approx(
        torch.corrcoef(torch.stack([cosines, wanted]))[0, 1].item(), abs=1e-4
    )


def test_lm_eval_gives_the_bases_figures(made: tuple[Path, Path], tmp_path: Path) -> None:
    rows = [
        {"question": text[:12], "choices": [" list", text[12:24], " é, 漢", " of"], "answer": i % 4}
        for i, text in enumerate(text for text in TEXTS if len(text) > 24)
    ]
    rows += [{**row, "question": row["question"][::-1], "answer": 2} for row in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "choices.yaml").write_text(CHOICES.format(file=tmp_path / "rows.jsonl"))
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    figures, likelihoods = [], []
    for folder in (made[0] / "model", made[1]):
        results = lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(folder), "dtype": "float32"},
            tasks=["choices"],
            task_manager=tasks,
            device="cpu",
            batch_size=4,
            bootstrap_iters=0,
            log_samples=True,
        )
        figures.append({k: x for k, x in results["results"]["choices"].items() if "acc" in k})
        samples = sorted(results["samples"]["choices"], key=lambda sample: sample["doc_id"])
        likelihoods.append([[answer[0] for answer in s["filtered_resps"]] for s in samples])
    scored, of_base = map(torch.tensor, likelihoods)
    assert scored.shape == (len(rows), 4)
    assert figures[0] == figures[1]
    assert (scored <= of_base).all(), "logits are the base's; its softmax has fewer tokens"
    assert torch.allclose(scored, of_base, rtol=5e-3)
    assert scored.std() > 0.1
