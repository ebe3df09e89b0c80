"""A model's scores on tasks of mteb, in mteb's own format and cache.

Which tasks those are and where their data lies is in `mteb_tasks`.
"""

import fcntl
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import mteb
import torch
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder, get_prompt_name
from mteb.models.model_meta import ScoringFunction
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper

from gem_ds.errors import InputError
from gem_ds.evaluation import mteb_items
from gem_ds.evaluation.result_files import Candidate, run_each, write_json
from gem_ds.files import sync
from gem_ds.inference.encoder import Encoder


@dataclass(frozen=True)
class Settings:
    """How texts are embedded; what differs from these defaults keeps its results apart.

    `prompts` go before a text; their keys are mteb's, for example ``STSBenchmark``, ``STS``,
    ``Retrieval-query`` or ``query``, the first of these that there is.
    """

    prompts: Mapping[str, str] = field(default_factory=dict)
    max_length: int | None = None
    truncate_dim: int | None = None
    dtype: str | None = None

    def changed(self) -> dict[str, Any] | None:
        """Those that are not the default, for mteb's ``experiment_kwargs``."""
        return {
            name: dict(v) if name == "prompts" else v for name, v in vars(self).items() if v
        } or None


class Gem(AbsEncoder):  # type: ignore[misc]
    """An mteb encoder around this project's own, or around SentenceTransformers' folder.

    The model is loaded when it is first needed: where all results are there, it never is.
    """

    def __init__(self, model: Candidate, settings: Settings, batch_tokens: int = 8192) -> None:
        self.tested = model
        self.settings = settings
        self.batch_tokens = batch_tokens
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": model.name,
                "revision": model.revision,
                "similarity_fn_name": ScoringFunction.COSINE,
                "experiment_kwargs": settings.changed(),
                "modalities": ["text"],
            }
        )

    def kwargs(self, show_progress: bool) -> dict[str, Any]:
        """What mteb hands on to `encode` and keeps beside the results."""
        if not self.tested.is_export:
            return {"batch_size": 32, "show_progress_bar": show_progress}
        device = "cuda" if torch.cuda.is_available() else "cpu"
        told = {"batch_tokens": self.batch_tokens, "device": device}
        return {"batch_size": 512, "show_progress_bar": show_progress, **told}

    @cached_property
    def _encoder(self) -> Encoder:
        dtype = getattr(torch, self.settings.dtype) if self.settings.dtype else None
        return Encoder.from_pretrained(self.tested.folder, dtype=dtype)

    @cached_property
    def _stock(self) -> Any:
        from sentence_transformers import SentenceTransformer

        dtype = {"dtype": self.settings.dtype} if self.settings.dtype else {}
        stock = SentenceTransformer(
            str(self.tested.folder),
            model_kwargs=dtype,
            truncate_dim=self.settings.truncate_dim,
            local_files_only=True,
        )
        if self.settings.max_length:
            stock.max_seq_length = self.settings.max_length
        wrapper = SentenceTransformerEncoderWrapper(stock)
        if self.settings.prompts:  # in place of the model's own; mteb refuses those of own tasks
            stock.prompts = wrapper.model_prompts = dict(self.settings.prompts)
        return wrapper

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> Any:
        """(N, C) one vector a text of the loader `inputs`, the task's prompt before each.

        An empty text is a space where the model has no bos token to embed in its place.
        """
        if not self.tested.is_export:
            about = {"task_metadata": task_metadata, "hf_split": hf_split, "hf_subset": hf_subset}
            return self._stock.encode(inputs, **about, prompt_type=prompt_type, **kwargs)
        name = get_prompt_name(dict(self.settings.prompts), task_metadata, prompt_type)
        prompt = self.settings.prompts[name] if name else ""
        texts = [prompt + text for batch in inputs for text in batch["text"]]
        if self._encoder.vocab.bos_token_id is None:
            texts = [text or " " for text in texts]
        about_texts = self.settings.max_length, kwargs.get("show_progress_bar", False)
        return self._encoder.encode(
            texts, self.batch_tokens, *about_texts, self.settings.truncate_dim
        )

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Of each with each: cosines, or what a SentenceTransformers folder says."""
        if self.tested.is_export:
            return super().similarity(embeddings1, embeddings2)
        return self._stock.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Of each with its partner."""
        if self.tested.is_export:
            return super().similarity_pairwise(embeddings1, embeddings2)
        return self._stock.similarity_pairwise(embeddings1, embeddings2)


class Cache(mteb.ResultCache):  # type: ignore[misc]
    """mteb's cache whose files appear whole, and which several jobs may write at once."""

    def save_to_cache(
        self,
        task_result: Any,
        model_name: Any,
        model_revision: str | None = None,
        *,
        encode_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """As mteb does, in a folder aside, from where the files are renamed into place."""
        about = (task_result.task_name, model_name, model_revision)
        target = self.get_task_result_path(*about)
        with _one_at_a_time(target.parent), tempfile.TemporaryDirectory(dir=target.parent) as aside:
            beside = mteb.ResultCache(aside)
            made = beside.get_task_result_path(*about)
            made.parent.mkdir(parents=True)
            settings = target.with_name("run_settings.jsonl")  # which mteb adds a line to
            if settings.exists():
                shutil.copy(settings, made.parent)
            beside.save_to_cache(
                task_result, model_name, model_revision, encode_kwargs=encode_kwargs
            )
            for path in sorted(made.parent.iterdir(), key=lambda path: path == made):
                sync(path)
                os.replace(path, target.with_name(path.name))  # the result itself last


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def read_prompts(path: Path, tasks: Sequence[Any]) -> dict[str, str]:
    """Prompts by task, type or kind of input from a JSON file.

    Raises `InputError` for one that belongs to nothing, neither `tasks` nor what mteb knows.
    """
    own = {f"{t.metadata.name}{kind}" for t in tasks for kind in ("", "-query", "-document")}
    try:
        prompts = {str(key): text for key, text in json.loads(path.read_text()).items()}
        if not all(isinstance(text, str) for text in prompts.values()):
            raise ValueError("a prompt is not a string")
        others = {key: text for key, text in prompts.items() if key not in own}
        AbsEncoder.validate_task_to_prompt_name(others)
        return prompts
    except (ValueError, AttributeError, KeyError) as error:
        raise InputError(
            f"{path} holds no prompts ({error}); it is an object of texts by task name, task type, "
            "query or document, or two of these joined by a hyphen"
        ) from error


def run(
    model: Candidate,
    tasks: Sequence[Any],
    output: Path,
    settings: Settings,
    batch_tokens: int = 8192,
    show_progress: bool = False,
) -> None:
    """Score the model on tasks and keep the results in `output`; those that are there stay.

    A result of another version of mteb or of other data is not taken for this one's. Raises
    `InputError` at the end, naming tasks that failed.
    """
    logging.getLogger("mteb").setLevel(logging.ERROR)
    if not show_progress:
        datasets.disable_progress_bars()
    encoder = Gem(model, settings, batch_tokens)
    cache = Cache(output)

    def score(task: Any) -> str:
        return f"{_score(encoder, task, cache, show_progress):.2f}"

    run_each(tasks, lambda task: str(task.metadata.name), score)


def _score(encoder: Gem, task: Any, cache: Cache, show_progress: bool) -> float:
    """The task's main score x 100: the mean over its splits and subsets."""
    meta, name = encoder.mteb_model_meta, task.metadata.name
    path = cache.get_task_result_path(name, meta)
    beside = cache.cache_path / "items" / path.relative_to(cache.cache_path / "results")
    known = cache.load_task_result(name, meta)
    same = known and known.is_mergeable(task, criteria=["dataset_revision", "mteb_version"])
    whole = same and not known.get_missing_evaluations(task)
    if not (whole and beside.exists()):
        # mteb itself takes any whole result for the task's, whatever its data and version.
        strategy = "only-missing" if same and not whole else "always"
        task.load_data()
        try:
            with tempfile.TemporaryDirectory() as predictions:
                (known,) = mteb.evaluate(
                    encoder,
                    task,
                    co2_tracker=False,
                    cache=cache,
                    overwrite_strategy=strategy,
                    prediction_folder=predictions,
                    encode_kwargs=encoder.kwargs(show_progress),
                    show_progress_bar=False,
                ).task_results
                write_json(beside, mteb_items.of_task(task, known.scores, Path(predictions)))
        finally:
            task.unload_data()
    scores = [entry["main_score"] for split in known.scores.values() for entry in split]
    return 100 * float(sum(scores) / len(scores))
