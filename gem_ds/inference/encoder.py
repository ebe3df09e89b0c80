"""Embedding texts with an exported model, and the flat stream that does it without padding.

A batch is one stream of whole documents ``bos text | summary``, the same layout and attention as
in training, so that any number of summary tokens and either summary attention gives what was
trained. Loading a model folder and tokenizing are in `export` and `corpus.tokenization`.

Shapes: T tokens in the stream, D documents, N texts, k summary tokens, C hidden size.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from gem_ds import layout
from gem_ds.attention import forward, registry
from gem_ds.attention.hf_config import longest_document
from gem_ds.attention.registry import Backend, Choice
from gem_ds.attention.segments import SummaryAttention
from gem_ds.corpus import tokenization
from gem_ds.corpus.tokenization import Ids, Vocabulary
from gem_ds.errors import InputError
from gem_ds.export.gem_config import GemConfig, open_export
from gem_ds.inference import quantization
from gem_ds.inference.long_texts import LongTexts, Read, head, read
from gem_ds.inference.quantization import Precision
from gem_ds.layout import Bounds
from gem_ds.model import adapter_files, base_model
from gem_ds.model.contrastive import Aggregation, aggregate

Vectors = npt.NDArray[np.float32]
CPU_TOKENS = 1024  # what its caches hold of a stream; more is slower


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of documents, longest first, in batches of at most `batch_tokens` tokens.

    A document that is longer by itself is a batch of its own.
    """
    batch: list[int] = []
    tokens = 0
    for i in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        if batch and tokens + lengths[i] > batch_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(i)
        tokens += lengths[i]
    if batch:
        yield batch


def stream(
    documents: Sequence[Ids],
    n_summary: int = 0,
    device: torch.device | str = "cpu",
    backend: Backend = "sdpa",
    summary_attention: SummaryAttention = "isolated",
) -> tuple[dict[str, Any], Bounds]:
    """The arguments of a model's forward for documents one after another, and their layout (D, 4).

    The last `n_summary` tokens of each document are its summary tokens; with 0 they are plain.
    """
    end_D = np.cumsum([len(document) for document in documents])
    start_D = np.concatenate([[0], end_D[:-1]])
    bounds_D4 = np.stack([start_D, end_D - n_summary, end_D, end_D], axis=1).astype(np.int32)
    ids_T = torch.from_numpy(np.concatenate(documents).astype(np.int64))
    arguments = {
        "input_ids": ids_T.to(device)[None],
        "position_ids": torch.from_numpy(layout.positions(bounds_D4)).to(device)[None],
        "gem_plan": registry.make_plan(bounds_D4, backend, summary_attention, device, n_summary),
        "use_cache": False,
    }
    return arguments, bounds_D4


def load(
    folder: Path, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Any:
    """The language model in ``model/``, ready to compute; see `Encoder.from_pretrained`."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype is None and device.type == "cpu":
        dtype = torch.float32
    if not base_model.tensor_files(folder):  # Transformers would read pickled ones
        raise InputError(f"{folder} has no weights in safetensors files; copy the export again")
    return base_model.load(folder, dtype or "auto").to(device).eval()


def put_on_adapter(model: Any, folder: Path) -> None:
    """Put the adapter beside ``model/`` on that model (`model.adapters.put_on`), attention
    attached."""
    from gem_ds.model import adapters  # peft takes seconds to import

    registry.attach(model)
    adapters.put_on(model, folder.parent / adapter_files.FOLDER)


class Encoder:
    """Turns texts into unit vectors, made of the last hidden states at the summary tokens.

    `backbone` is a Transformers model without its head; it is switched to this project's attention
    and to evaluation.
    """

    def __init__(
        self,
        backbone: Any,
        vocab: Vocabulary,
        summary_tokens: Sequence[int],
        summary_attention: SummaryAttention = "isolated",
        backend: Choice = "auto",
        aggregation: Aggregation = "mean",
    ) -> None:
        registry.attach(backbone)
        self.backbone = backbone.eval()
        self.vocab = vocab
        self.summary_tokens = np.asarray(summary_tokens, dtype=np.int32)
        self.summary_attention = summary_attention
        self.aggregation = aggregation
        self.backend = registry.choose(backend, backbone, backbone.device, backbone.dtype)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        attention: Choice = "auto",
        verify: bool = False,
    ) -> "Encoder":
        """Load an export (`export.gem_config.open_export`), without the head that generates.

        Without `device` the GPU is taken if there is one; without `dtype` a GPU computes in the
        weights' own and a CPU in float32. Raises `InputError` for what is no export, or not as it
        was exported.
        """
        folder, gem = open_export(name, verify)
        lm = load(folder, device, dtype)
        if gem.adapter:
            put_on_adapter(lm, folder)
        return cls.of_export(forward.body(lm), tokenization.load(folder), gem, attention)

    @classmethod
    def of_export(
        cls, backbone: Any, vocab: Vocabulary, gem: GemConfig, attention: Choice = "auto"
    ) -> "Encoder":
        """The encoder of an exported model. Raises `InputError` if it has no summary tokens."""
        if not gem.summary_tokens:
            raise InputError(
                f"{vocab.source} was trained without summary tokens, so it cannot embed; train it "
                "on shards with --kinds plain=0.8,continuation=0.2"
            )
        return cls(
            *(backbone, vocab, gem.summary_tokens),
            *(gem.summary_attention, attention, gem.aggregation),
        )

    @property
    def width(self) -> int:
        """Dimensions of a whole embedding."""
        hidden_size = int(self.backbone.config.get_text_config().hidden_size)
        return hidden_size * (len(self.summary_tokens) if self.aggregation == "concat" else 1)

    @property
    def max_tokens(self) -> int:
        """Tokens that a text may have, beside the bos token and the summary tokens."""
        around = len(head(self.vocab)) + len(self.summary_tokens)
        return longest_document(self.backbone.config) - around

    def at_once(self, batch_tokens: int) -> int:
        """How many of so many tokens are best read as one stream."""
        on_cpu = self.backbone.device.type == "cpu"
        return min(batch_tokens, CPU_TOKENS) if on_cpu else batch_tokens

    def encode(
        self,
        texts: Sequence[str],
        batch_tokens: int = 8192,
        max_length: int | None = None,
        show_progress: bool = False,
        truncate_dim: int | None = None,
        prompt: str | None = None,
        normalize: bool = True,
        precision: Precision = "float32",
        long_texts: LongTexts = "cut",
    ) -> npt.NDArray[Any]:
        """(N, C), one unit vector a text, whatever the others are and their order.

        With `truncate_dim` it is the unit vector of so many first dimensions (a model trained with
        ``--matryoshka`` says which are good); without `normalize` it has the length that the model
        gave it. `precision` is one of `quantization.quantize`. `prompt` is put before each text.

        Text that spells a control token is text. A text of more than `max_length` tokens (the
        model's own maximum without it), control tokens included, is long. With ``cut`` its end is
        left out, which is said once on stderr. With ``windows`` it is read in as few parts of equal
        length as fit, each with the prompt before it, and its vector is the mean of theirs,
        weighted by their tokens.

        Raises `InputError` for a text that is not valid Unicode, or of no tokens if the model has
        no bos token.
        """
        quantization.check(precision)
        size = self.width if truncate_dim is None else truncate_dim
        if not 0 < size <= self.width:
            raise InputError(f"an embedding has {self.width} dimensions, not {size}; ask for fewer")
        if batch_tokens < 1:
            raise InputError(f"batch_tokens is {batch_tokens}, it must be at least 1")
        read = self._read(texts, max_length, prompt or "", long_texts)
        raw_DC = np.empty((len(read.documents), size), dtype=np.float32)
        bar = tqdm(total=len(raw_DC), unit="text", disable=not show_progress)
        lengths = [len(document) for document in read.documents]
        for batch in batches(lengths, self.at_once(batch_tokens)):
            whole_BC = self.embed([read.documents[i] for i in batch])
            raw_DC[batch] = whole_BC[:, :size].cpu().numpy()
            bar.update(len(batch))
        bar.close()
        vectors_NC = np.zeros((len(texts), size), dtype=np.float32)
        np.add.at(vectors_NC, read.owners_D, raw_DC * read.shares_D[:, None])
        if normalize:
            vectors_NC = F.normalize(torch.from_numpy(vectors_NC), dim=-1).numpy()
        return quantization.quantize(vectors_NC, precision)

    def _read(
        self, texts: Sequence[str], max_length: int | None, prompt: str, long_texts: LongTexts
    ) -> Read:
        limit = longest_document(self.backbone.config)
        least = len(head(self.vocab)) + len(self.summary_tokens) + 1
        if max_length is not None and not least <= max_length <= limit:
            raise InputError(
                f"max length {max_length} must be between {least} and "
                f"{limit}, the longest text of this model"
            )
        return read(
            *(self.vocab, texts, self.summary_tokens),
            *(max_length or limit, prompt, long_texts),
        )

    @torch.inference_mode()
    def embed(self, documents: Sequence[Ids]) -> Tensor:
        """(D, C) float32 embeddings, not normalized, of the documents ``bos text summary`` of one
        stream."""
        arguments, bounds_D4 = stream(
            documents,
            len(self.summary_tokens),
            self.backbone.device,
            self.backend,
            self.summary_attention,
        )
        hidden_TC = self.backbone(**arguments).last_hidden_state[0]
        index_Dk = torch.from_numpy(layout.summary_index(bounds_D4)).to(hidden_TC.device)
        return aggregate(hidden_TC[index_Dk], self.aggregation)
