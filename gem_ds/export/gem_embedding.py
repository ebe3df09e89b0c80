"""Embedding with summary tokens in SentenceTransformers, whatever their number, their attention and
the adapter. Exports carry a copy of this file and of `gem_seal`, which need PyTorch, Transformers,
tokenizers and safetensors, and nothing of the project that wrote them.

A text becomes ``bos text summary``, padded on the right. Text that spells a control token stays
text. Summary tokens see the text and themselves ("isolated") or each other causally too; adapters
(LoRA) act at summary tokens alone. The embedding is the mean, the concatenation or the last of the
hidden states at the summary tokens.

Shapes: B texts, T tokens of the longest with its summary, k summary tokens, N heads, H head size,
C hidden size.
"""

import json
from collections.abc import Sequence
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, processors
from torch import Tensor, nn

from .gem_seal import SEAL, first_line, read_settings

NAME = "gem_embedding"
SETTINGS = "gem_embedding.json"
# The batch that is being computed, for the layers' adapters; each thread has its own.
_BATCH: ContextVar["_Batch"] = ContextVar("batch")


class _Batch:
    """Where the summary tokens of padded texts stand, and who attends whom."""

    def __init__(self, index_Bk: Tensor, length: int, isolated: bool) -> None:
        self.index_Bk = index_Bk
        self.length = length
        self.isolated = isolated
        self.texts_B1 = torch.arange(len(index_Bk), device=index_Bk.device)[:, None]
        self._causal: dict[int | None, Tensor | None] = {None: None}
        self._summary: dict[int | None, Tensor] = {}

    def causal(self, window: int | None) -> Tensor | None:
        """(T, T) which keys a token attends among the latest `window`; None for all before it.
        Padding stands behind its text, so that no token of the text attends it."""
        window = self._at_work(window)
        if window not in self._causal:
            place_T = torch.arange(self.length, device=self.index_Bk.device)
            back_TT = place_T[:, None] - place_T
            self._causal[window] = (back_TT >= 0) & (back_TT < (window or self.length))
        return self._causal[window]

    def summary(self, window: int | None) -> Tensor:
        """(B, 1, k, T) which keys the summary tokens attend: the text, and each itself."""
        window = self._at_work(window)
        if window not in self._summary:
            place_T = torch.arange(self.length, device=self.index_Bk.device)
            back_BkT = self.index_Bk[..., None] - place_T
            text_B1T = place_T < self.index_Bk[:, :1, None]
            seen_BkT = (text_B1T | (back_BkT == 0)) & (back_BkT < (window or self.length))
            self._summary[window] = seen_BkT[:, None]
        return self._summary[window]

    def _at_work(self, window: int | None) -> int | None:
        return window if window and window < self.length else None


def attend(
    module: nn.Module,
    query: Tensor,  # (B, N, T, H)
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    gem_batch: _Batch,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The function that Transformers calls in every layer. Returns (B, T, N, H) and no weights.
    All tokens attend causally, which needs no mask where there is no window; then isolated summary
    tokens are computed again, each without the others."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    rest = scale, softcap, s_aux
    out_BTNH = _attention(query, key, value, gem_batch.causal(sliding_window), *rest)
    if gem_batch.isolated:
        at = gem_batch.texts_B1, gem_batch.index_Bk
        query_BNkH = query.transpose(1, 2)[at].transpose(1, 2)
        seen = gem_batch.summary(sliding_window)
        out_BTNH = out_BTNH.index_put(at, _attention(query_BNkH, key, value, seen, *rest))
    return out_BTNH, None


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """(B, queries, N, H); without a mask it is causal. Scores may be soft-capped; with `sinks` (N,)
    each head's softmax has one more score, whose value is zero."""
    if not softcap and sinks is None:
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale
        )
        return out.transpose(1, 2)
    if mask is None:
        mask = query.new_ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
    scores = (query @ key.transpose(2, 3)).to(torch.promote_types(query.dtype, torch.float32))
    scores = scores * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        column = sinks.to(scores)[:, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = scores.softmax(-1).to(value.dtype)[..., : key.shape[2]]
    return (weights @ value).transpose(1, 2)


transformers.AttentionInterface.register(NAME, attend)
transformers.AttentionMaskInterface.register(NAME, lambda *_, **__: None)


def template(backend: Tokenizer, bos: Sequence[int], summary: Sequence[int]) -> Any:
    """The post-processor that puts bos and summary tokens around a text."""
    first, last = ([backend.id_to_token(i) for i in ids] for ids in (bos, summary))
    single, pair = [*first, "$A", *last], [*first, "$A", "$B", *last]
    tokens = zip([*first, *last], [*bos, *summary], strict=True)
    return processors.TemplateProcessing(single, pair, list(tokens))


class TextTokenizer(transformers.PreTrainedTokenizerFast):  # type: ignore[misc]
    """Gives the ids that `GemEmbedding` reads, to libraries that count, split or pad tokens.
    It decodes without control tokens by default: splitters cut ids and expect text back."""

    def __init__(self, backend: Tokenizer, settings: dict[str, Any]) -> None:
        bos, summary = settings["bos"], settings["summary_tokens"]
        names = [backend.id_to_token(i) for i in (*bos, *summary)]
        super().__init__(
            tokenizer_object=backend,  # copied
            post_processor=template(backend, bos, summary),
            bos_token=names[0] if bos else None,
            pad_token=names[-1],  # what pads is masked
            extra_special_tokens=names,
            model_max_length=settings["max_seq_length"],
            split_special_tokens=True,
        )

    def decode(self, token_ids: Any, skip_special_tokens: bool = True, **more: Any) -> Any:
        return super().decode(token_ids, skip_special_tokens, **more)


class GemEmbedding(nn.Module):
    """The first module of a SentenceTransformer, from texts to embeddings."""

    save_in_root = True

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        settings: dict[str, Any],
        lora: dict[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.settings = model, settings
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.backend = tokenizer  # apart from `tokenizer`, whose calls change its settings
        self.tokenizer = TextTokenizer(tokenizer, settings)
        self.lora = nn.ParameterDict()
        for name, tensor in (lora or {}).items():
            self.lora[name.replace(".", "/")] = nn.Parameter(tensor, requires_grad=False)
            layer, is_a, _ = name.partition(".lora_A.")
            if is_a:
                layer = layer.removeprefix(f"base_model.model.{model.base_model_prefix}.")
                hook = partial(self._hook, name, name.replace(".lora_A.", ".lora_B."), layer)
                model.get_submodule(layer).register_forward_hook(hook)

    @property
    def max_seq_length(self) -> int:
        return int(self.settings["max_seq_length"])

    @max_seq_length.setter
    def max_seq_length(self, length: int) -> None:
        self.settings["max_seq_length"] = self.tokenizer.model_max_length = length

    def _hook(self, a: str, b: str, layer: str, _: nn.Module, args: Any, out: Tensor) -> Tensor:
        """A linear layer's output with LoRA added at the summary tokens."""
        batch, x_BTC = _BATCH.get(), args[0]
        if x_BTC.shape[:-1] != (len(batch.index_Bk), batch.length):
            raise ValueError(f"{layer} is called on {tuple(x_BTC.shape)}, not on texts of tokens")
        a_RC, b_DR = (self.lora[name.replace(".", "/")] for name in (a, b))
        at = batch.texts_B1, batch.index_Bk
        delta_BkD = F.linear(F.linear(x_BTC[at], a_RC), b_DR)
        delta_BkD = delta_BkD * (self.settings["lora_alpha"] / len(a_RC))
        return out.index_put_(at, delta_BkD.to(out.dtype), accumulate=True)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        model_kwargs: dict[str, Any] | None = None,
        **how: Any,
    ) -> "GemEmbedding":
        """Load from a folder or the hub; `ValueError` for files that are not as sealed."""
        folder = Path(model_name_or_path)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            where = {name: how.get(name) for name in ("revision", "token", "local_files_only")}
            where["cache_dir"] = how.get("cache_folder")
            folder = Path(snapshot_download(model_name_or_path, **where))
        folder = folder / subfolder
        told = read_settings(folder, SETTINGS)
        chosen = {"dtype": "auto", "use_safetensors": True, **(model_kwargs or {})}
        if chosen.setdefault("attn_implementation", NAME) != NAME:
            named = f"attn_implementation is {chosen['attn_implementation']!r}"
            raise ValueError(f"{named}, but this model embeds with its own; leave it out")
        adapter = folder / "adapter" / "adapter_model.safetensors"
        try:
            model = transformers.AutoModel.from_pretrained(folder / "model", **chosen)
            tokenizer = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
            lora = load_file(adapter) if told["lora_alpha"] is not None else {}
        except Exception as error:  # of damaged files: of any kind
            raise ValueError(f"cannot load {folder}: {first_line(error)}; copy it again") from error
        lora = {name: tensor.to(model.device, model.dtype) for name, tensor in lora.items()}
        return cls(model, tokenizer, told, lora)

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Write what `load` reads; SentenceTransformers puts this file beside it."""
        folder = Path(output_path)
        (folder / SEAL).unlink(missing_ok=True)  # of other files than these
        self.model.save_pretrained(folder / "model")
        self.backend.save(str(folder / "model" / "tokenizer.json"))
        told = self.settings | {"sealed": False}
        (folder / SETTINGS).write_text(json.dumps(told, indent=2) + "\n")
        if self.lora:
            (folder / "adapter").mkdir(exist_ok=True)
            tensors = {n.replace("/", "."): p.detach().cpu() for n, p in self.lora.items()}
            save_file(tensors, folder / "adapter" / "adapter_model.safetensors")
        for path in folder.glob("*/*.safetensors"):  # by default its owner alone may read them
            path.chmod((folder / SETTINGS).stat().st_mode)

    def get_embedding_dimension(self) -> int:
        k = len(self.settings["summary_tokens"]) if self.settings["aggregation"] == "concat" else 1
        return k * int(self.model.config.get_text_config().hidden_size)

    get_sentence_embedding_dimension = get_embedding_dimension  # its older name

    def preprocess(
        self, inputs: Sequence[str], prompt: str | None = None, **_: Any
    ) -> dict[str, Tensor]:
        """(B, T) token ids and which of them are no padding. A text that is too long is cut."""
        bos, summary = self.settings["bos"], self.settings["summary_tokens"]
        room = self.max_seq_length - len(bos) - len(summary)
        if room < 1:
            raise ValueError(f"max_seq_length is {self.max_seq_length}; no text has room in it")
        texts = [(prompt or "") + text for text in inputs]
        self.backend.encode_special_tokens = True  # a copy of a tokenizer has forgotten it
        encoded = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        rows = [torch.tensor([*bos, *text.ids[:room], *summary]) for text in encoded]
        ids_BT = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=summary[-1])
        mask_BT = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], True)
        return {"input_ids": ids_BT, "attention_mask": mask_BT}

    def tokenize(self, texts: Sequence[str], **_: Any) -> dict[str, Tensor]:
        """What older versions of SentenceTransformers call `preprocess`."""
        return self.preprocess(texts)

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Adds (B, C), or (B, k C), the embeddings in fp32, and the hidden states (B, T, C)."""
        ids_BT = features["input_ids"]
        k = len(self.settings["summary_tokens"])
        first_B1 = features["attention_mask"].sum(1, keepdim=True) - k
        index_Bk = first_B1 + torch.arange(k, device=ids_BT.device)
        isolated = k > 1 and self.settings["summary_attention"] == "isolated"
        batch = _Batch(index_Bk, ids_BT.shape[1], isolated)
        before = _BATCH.set(batch)
        try:
            output = self.model(input_ids=ids_BT, gem_batch=batch, use_cache=False)
        finally:
            _BATCH.reset(before)
        hidden_BTC = output.last_hidden_state
        states_BkC = hidden_BTC[batch.texts_B1, index_Bk].float()
        ways = states_BkC.mean(1), states_BkC.flatten(1), states_BkC[:, -1]
        embedding = ways[("mean", "concat", "last").index(self.settings["aggregation"])]
        return {**features, "token_embeddings": hidden_BTC, "sentence_embedding": embedding}
