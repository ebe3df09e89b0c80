"""Embedding texts with an exported model, and the flat stream that does it without padding.

A batch is one stream of whole documents ``bos text | summary``, the same layout and attention as
in training, so that any number of summary tokens and either summary attention gives what was
trained. Loading a model folder and tokenizing are the business of `export` and `tokenization`.

Shapes: T tokens in the stream, D documents, N texts, k summary tokens, C hidden size.
"""

import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModel

from gem_ds import adapter_files, attention, layout, tokenization
from gem_ds.attention import Backend, Choice
from gem_ds.contrastive import Aggregation, aggregate
from gem_ds.errors import InputError
from gem_ds.files import replacing
from gem_ds.gem_config import read_gem_config
from gem_ds.layout import Bounds
from gem_ds.segments import SummaryAttention
from gem_ds.tokenization import Ids, Vocabulary

Vectors = npt.NDArray[np.float32]


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
        "gem_plan": attention.make_plan(bounds_D4, backend, summary_attention, device, n_summary),
        "use_cache": False,
    }
    return arguments, bounds_D4


def longest_document(config: Any) -> int:
    """Tokens of the longest document that a model of this Transformers config takes here."""
    return int(config.get_text_config().max_position_embeddings)


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
        attention.attach(backbone)
        self.backbone = backbone.eval()
        self.vocab = vocab
        self.summary_tokens = np.asarray(summary_tokens, dtype=np.int32)
        self.summary_attention = summary_attention
        self.aggregation = aggregation
        self.backend = attention.choose(backend, backbone, backbone.device, backbone.dtype)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        attention: Choice = "auto",
    ) -> "Encoder":
        """Load an export folder or the `model/` in it.

        Without `device` the GPU is taken if there is one; without `dtype` a GPU computes in the
        weights' own and a CPU in float32. Raises `InputError` for a folder that is no export.
        """
        folder = Path(folder)
        if (folder / "model").is_dir():
            folder = folder / "model"
        gem = read_gem_config(folder)
        if not gem.summary_tokens:
            raise InputError(
                f"{folder} was trained without summary tokens, so it cannot embed; train it on "
                "shards with --kinds plain=0.8,continuation=0.2"
            )
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if dtype is None and device.type == "cpu":
            dtype = torch.float32
        if gem.adapter:
            from gem_ds import adapters  # peft takes seconds to import

            backbone = adapters.load(folder, folder.parent / adapter_files.FOLDER, dtype or "auto")
        else:
            backbone = AutoModel.from_pretrained(folder, dtype=dtype or "auto")
        backbone = backbone.to(device)
        vocab = tokenization.load(folder)
        return cls(
            *(backbone, vocab, gem.summary_tokens),
            *(gem.summary_attention, attention, gem.aggregation),
        )

    @property
    def width(self) -> int:
        """Dimensions of a whole embedding."""
        hidden_size = int(self.backbone.config.get_text_config().hidden_size)
        return hidden_size * (len(self.summary_tokens) if self.aggregation == "concat" else 1)

    def encode(
        self,
        texts: Sequence[str],
        batch_tokens: int = 8192,
        max_length: int | None = None,
        show_progress: bool = False,
        truncate_dim: int | None = None,
    ) -> Vectors:
        """(N, C) float32, one unit vector a text, whatever the others are and their order.

        With `truncate_dim` it is the unit vector of so many first dimensions (a model trained with
        ``--matryoshka`` says which are good).

        Text that spells a control token is text. A text of more than `max_length` tokens (the
        model's own maximum without it), control tokens included, is cut at its end, which is said
        once on stderr. Raises `InputError` for a text of no tokens if the model has no bos token.
        """
        documents = self._documents(texts, max_length)
        size = self.width if truncate_dim is None else truncate_dim
        if not 0 < size <= self.width:
            raise InputError(f"an embedding has {self.width} dimensions, not {size}; ask for fewer")
        vectors_NC = np.empty((len(texts), size), dtype=np.float32)
        lengths = [len(document) for document in documents]
        bar = tqdm(total=len(texts), unit="text", disable=not show_progress)
        for batch in batches(lengths, batch_tokens):
            whole_NC = self._embed([documents[i] for i in batch])
            vectors_NC[batch] = F.normalize(whole_NC[:, :size], dim=-1).cpu().numpy()
            bar.update(len(batch))
        bar.close()
        return vectors_NC

    def _documents(self, texts: Sequence[str], max_length: int | None) -> list[Ids]:
        """``bos text summary`` of each text."""
        limit = longest_document(self.backbone.config)
        if max_length is not None and not len(self.summary_tokens) + 2 <= max_length <= limit:
            raise InputError(
                f"max length {max_length} must be between {len(self.summary_tokens) + 2} and "
                f"{limit}, the longest text of this model"
            )
        bos = [] if self.vocab.bos_token_id is None else [self.vocab.bos_token_id]
        head = np.array(bos, dtype=np.int32)
        room = (max_length or limit) - len(head) - len(self.summary_tokens)
        documents = []
        n_cut = 0
        for i, ids in enumerate(tokenization.encode(self.vocab, texts), start=1):
            if not len(head) + len(ids):
                raise InputError(
                    f"text {i} is empty, and this model has no bos token to embed in its place; "
                    "remove it"
                )
            n_cut += len(ids) > room
            documents.append(np.concatenate([head, ids[:room], self.summary_tokens]))
        if n_cut:
            print(
                f"{n_cut} of {len(texts)} texts are longer than {max_length or limit} tokens and "
                "were cut there",
                file=sys.stderr,
            )
        return documents

    @torch.inference_mode()
    def _embed(self, documents: Sequence[Ids]) -> Tensor:
        """(D, C) float32 embeddings of the documents of one stream."""
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


def read_lines(path: str) -> list[str]:
    """The lines of a UTF-8 file, ``-`` being standard input, without their ends.

    Raises `InputError` naming a line that is not UTF-8, or if there are none.
    """
    name = "standard input" if path == "-" else path
    texts = []
    with sys.stdin.buffer if path == "-" else open(path, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                texts.append(line.rstrip(b"\r\n").decode())
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{name}, line {number}: not UTF-8 ({error}); convert or remove the line"
                ) from None
    if not texts:
        raise InputError(f"{name} has no lines; give one text a line")
    return texts


def save(vectors_NC: Vectors, path: str) -> None:
    """Write a .npy to standard output (``-``) or a file, which appears complete or not at all."""
    buffer = io.BytesIO()  # numpy writes to no pipe
    np.save(buffer, vectors_NC)
    if path == "-":
        sys.stdout.buffer.write(buffer.getbuffer())
        return
    with replacing(Path(path)) as partial:
        partial.write_bytes(buffer.getbuffer())
