"""One set of weights embeds, compresses and writes, as stock libraries and the rule say."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import TEXTS, export_adapter, export_tiny
from peft.tuners.lora.layer import LoraLayer
from test_memories import whole
from transformers import AutoModelForCausalLM, DynamicCache

import gem_ds
from gem_ds import GemModel
from gem_ds.errors import InputError
from gem_ds.inference import generation
from gem_ds.inference.encoder import Encoder
from gem_ds.inference.generation import Sampling

GOOD = [text for text in TEXTS if text]


@pytest.fixture(
    scope="module", params=["llama", "qwen3", "gemma3-window", "adapter", "gemma3-adapter"]
)
def folder(
    request: pytest.FixtureRequest, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    work = tmp_path_factory.mktemp(request.param)
    if request.param.endswith("adapter"):
        family = "gemma3" if request.param.startswith("gemma3") else "llama"
        return export_adapter(tokenizer_dir, work, family, k=2)[1]
    return export_tiny(tokenizer_dir, work, request.param, k=2)[1]


@pytest.fixture(scope="module")
def gem(folder: Path) -> GemModel:
    return GemModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def llama(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> GemModel:
    work = tmp_path_factory.mktemp("llama")
    return GemModel.from_pretrained(export_tiny(tokenizer_dir, work, k=1)[1])


def document(gem: GemModel, text: str) -> np.ndarray:
    ids = gem.vocab.backend.encode(text, add_special_tokens=False).ids
    return np.array([0, *ids, *gem.gem.summary_tokens], dtype=np.int32)


def test_the_package_loads_without_torch() -> None:
    code = "import sys, gem_ds; print('torch' in sys.modules); gem_ds.GemModel, gem_ds.Memory"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("False", 0), done.stderr
    with pytest.raises(AttributeError, match="no attribute 'Gem'"):
        _ = gem_ds.Gem


def test_both_models_have_the_same_weights_and_only_one_is_adapted(gem: GemModel) -> None:
    stock = {id(p) for p in gem.lm.parameters()}
    others = [n for n, p in gem.encoder.backbone.named_parameters() if id(p) not in stock]
    assert all(".lora_" in name for name in others)
    assert bool(others) == gem.gem.adapter
    assert not any("lora" in name for name, _ in gem.lm.named_parameters())


def test_embeds_as_the_encoder_alone_does(gem: GemModel, folder: Path) -> None:
    expected = Encoder.from_pretrained(folder).encode(TEXTS)
    assert np.array_equal(gem.encode(TEXTS), expected)
    one = gem.encode(TEXTS[2])
    assert one.shape == (32,)
    assert one @ expected[2] >= 0.99999


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 0.99999), (torch.bfloat16, 0.9999)])
def test_a_vector_does_not_depend_on_its_batch(folder: Path, dtype: torch.dtype, least) -> None:
    gem = GemModel.from_pretrained(folder, dtype=dtype)
    texts = [text[: 3 * n] for n in range(2, 9) for text in GOOD]
    together = gem.encode(texts)
    alone = np.stack([gem.encode(text) for text in texts])
    few = gem.encode(texts[::-1], batch_tokens=50)[::-1]
    assert (together * alone).sum(1).min() >= least
    assert (together * few).sum(1).min() >= least


def test_writes_what_stock_generation_writes(gem: GemModel, folder: Path) -> None:
    lm = AutoModelForCausalLM.from_pretrained(folder / "model")
    gem.encode(TEXTS)  # which leaves the model that writes as it is
    for prompt in ("Split the", " é"):
        ids = gem.vocab.backend.encode(prompt).ids
        out = lm.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0]
        expected = gem.vocab.backend.decode(out.tolist()).removeprefix(prompt)
        found = gem.generate(prompt, max_new_tokens=24)
        assert expected.rstrip("�").startswith(found.rstrip("�"))
        assert len(expected.rstrip("�")) - len(found) <= 1


def test_interleaved_streams_and_embeddings_do_not_disturb_each_other(gem: GemModel) -> None:
    expected, vector = gem.generate("Split the"), gem.encode("x y")
    pieces = []
    for piece in gem.stream("Split the"):
        pieces.append(piece)
        assert np.allclose(gem.encode("x y"), vector)
    assert "".join(pieces) == expected


def test_memories_are_what_the_rule_lets_a_suffix_see(gem: GemModel) -> None:
    """Token by token from memory, as from the whole stream with the prefix hidden."""
    text, prompt, n, k = GOOD[2][:40], " list", 6, 2
    memory = gem.compress(text)
    assert (memory.k, memory.n_tokens) == (k, gem.count_tokens([text])[0])
    suffix = np.array(gem.vocab.backend.encode(prompt, add_special_tokens=False).ids, np.int32)
    reader, written = gem._reader, []
    suppressed = gem.lm.generation_config.suppress_tokens
    for _ in range(n):
        logits = whole(reader, document(gem, text), k, np.array([*suffix, *written], np.int32))[
            -1
        ].clone()
        logits[suppressed] = -torch.inf
        written.append(int(logits.argmax()))
    expected = gem.vocab.backend.decode([*suffix.tolist(), *written]).removeprefix(prompt)
    found = gem.generate(prompt, [memory], max_new_tokens=n)
    assert found.rstrip("�") == expected.rstrip("�")[: len(found.rstrip("�"))]
    assert len(found) > 1
    for other in (text, GOOD[0]):
        cache, position = gem._remembered([gem.compress(other)])
        places = torch.arange(position, position + len(suffix))[None]
        given = {"position_ids": places, "past_key_values": cache, "use_cache": True}
        with torch.inference_mode():
            logits = gem.lm(torch.from_numpy(suffix).long()[None], **given).logits[0]
        expected_TV = whole(reader, document(gem, text), k, suffix)[1:]
        assert torch.allclose(logits, expected_TV, atol=1e-3) == (other == text)


def test_an_adapter_is_on_in_memories_and_off_in_what_is_written(
    tokenizer_dir: Path, tmp_path: Path
) -> None:
    base, folder = export_adapter(tokenizer_dir, tmp_path, k=2)
    gem = GemModel.from_pretrained(folder)
    ids = torch.randint(400, (1, 20), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        logits = gem.lm(ids).logits[..., :400]
        assert torch.allclose(logits, base(ids).logits[..., :400], atol=1e-5)
    on = gem.compress(TEXTS[2])
    for module in gem._reader.modules():
        if isinstance(module, LoraLayer):
            module.enable_adapters(False)
    off = gem.compress(TEXTS[2])
    assert not torch.allclose(on.keys[1], off.keys[1], atol=1e-2)
    assert not torch.allclose(on.values[0], off.values[0], atol=1e-2)


def test_compressing_texts_together_or_alone_is_the_same(gem: GemModel) -> None:
    together = gem.compress(TEXTS)
    for text, memory in zip(TEXTS, together, strict=True):
        alone = gem.compress(text)
        assert alone.position == memory.position
        for a, b in zip((*alone.keys, *alone.values), (*memory.keys, *memory.values), strict=True):
            assert torch.allclose(a, b, atol=1e-4)
    assert gem.compress([]) == []


def test_a_memory_takes_k_of_the_tokens_and_k(llama: GemModel) -> None:
    text = GOOD[2][:60]
    memory = llama.compress(text)
    n = 1 + memory.n_tokens
    with torch.inference_mode():
        cache = llama.lm(torch.from_numpy(document(llama, text)).long()[None]).past_key_values
    whole_bytes = sum(x.keys.nbytes + x.values.nbytes for x in cache.layers)
    assert memory.n_bytes * (n + 1) == whole_bytes


def test_several_memories_all_matter(llama: GemModel) -> None:
    memories = llama.compress(GOOD[:3])
    texts = {llama.generate("so", given, 12) for given in (memories, memories[:2], memories[1:])}
    assert len(texts) == 3
    assert llama.generate("so", memories[::-1], 12) == llama.generate("so", memories, 12)
    # The prompt stands behind the longest: what a shorter one says does not move it.
    assert llama._remembered(memories)[1] == max(m.position for m in memories)
    assert llama._remembered(memories)[0].get_seq_length() == 3


def test_reconstructing_is_greedy_from_the_memory_alone(llama: GemModel) -> None:
    memory = llama.compress(GOOD[0])
    text = llama.reconstruct(memory)
    assert text == llama.reconstruct(memory)
    more = llama.generate(np.array([memory.next_token]), [memory], memory.n_tokens - 1)
    first = llama.vocab.backend.decode([memory.next_token])
    assert text.rstrip("�").endswith(more.rstrip("�"))
    assert text.startswith(first.rstrip("�"))
    assert memory.next_token not in llama.lm.generation_config.suppress_tokens
    assert llama.reconstruct(memory, 1) in (first, "")
    assert llama.reconstruct(llama.compress("")) == ""


def test_summary_tokens_and_empty_rows_are_never_written(llama: GemModel) -> None:
    suppressed = {*llama.gem.summary_tokens, *range(llama.vocab.size, 406)}
    assert suppressed <= set(llama.lm.generation_config.suppress_tokens)
    with torch.no_grad():
        head = llama.lm.get_output_embeddings().weight
        before = head.clone()
        head[list(suppressed)] = 50 * before.abs().max()  # now likely
    try:
        for temperature in (0, 1):
            sampling = Sampling(temperature, seed=1)
            written = generation.tokens(llama.lm, np.array([0, 5]), DynamicCache(), 0, 20, sampling)
            assert not suppressed & set(written)
        assert llama.compress("a b").next_token not in suppressed
    finally:
        with torch.no_grad():
            head.copy_(before)


def test_memories_of_another_model_are_refused(
    llama: GemModel, tokenizer_dir: Path, tmp_path: Path
) -> None:
    _, folder = export_tiny(tokenizer_dir, tmp_path / "same", k=1)
    same = GemModel.from_pretrained(folder / "model")
    memory = llama.compress("a text")
    assert same.reconstruct(memory) == llama.reconstruct(memory)
    _, folder = export_tiny(tokenizer_dir, tmp_path / "other", k=1, dtype=torch.bfloat16)
    other = GemModel.from_pretrained(folder)
    for use in (other.reconstruct, lambda m: other.generate("a", [m])):
        with pytest.raises(InputError, match=r"memory was made by another model .* compress its"):
            use(memory)


def test_bad_input_is_one_sentence(llama: GemModel) -> None:
    long = "a word " * 150_000
    assert np.allclose(llama.encode(long), llama.encode(long[:4000]), atol=1e-5)
    assert llama.encode(" \n\t ").shape == (32,)
    with pytest.raises(
        InputError, match=r"the prompt has .* tokens, and the model has room for 64"
    ):
        llama.generate(long)
    for call in (llama.encode, llama.compress, llama.generate):
        with pytest.raises(InputError, match="text 1 is not valid Unicode: a lone surrogate at ch"):
            call("ab\ud800")
    with pytest.raises(InputError, match="text 2 is a NoneType; give strings"):
        llama.encode(["a", None])
    with pytest.raises(InputError, match="the prompt is empty"):
        llama.generate("", [llama.compress("a")])
    assert isinstance(llama.generate("", max_new_tokens=3), str), "from the bos token"
    for wrong in ({"temperature": -1}, {"top_p": 0}, {"max_new_tokens": 0}, {"stop": [""]}):
        with pytest.raises(InputError):
            llama.stream("a", **wrong)
    assert llama.count_tokens(["<|summary_0|>"])[0] > 1


def test_a_text_ends_where_positions_end(llama: GemModel) -> None:
    prompt = np.arange(60) % 50 + 10
    assert len(llama.generate(prompt, max_new_tokens=50)) > 0
    written = list(llama.stream(prompt, max_new_tokens=50))
    assert len(written) <= 5


def test_a_hub_name_that_is_not_to_be_had_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="no-such/model is neither a folder here nor to be had"):
        GemModel.from_pretrained("no-such/model")
