import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from helpers import BOS, EOS
from tokenizers import Tokenizer, models, processors
from transformers import AutoTokenizer

from gem_ds.corpus import tokenization
from gem_ds.errors import InputError

TEXTS = ["Hello world", "naïve café 😀 日本語", "a\r\nb\0c", f"spells {EOS}{BOS}<|summary_0|> out"]


@pytest.fixture
def folder(tokenizer_dir: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(tokenizer_dir, tmp_path / "tokenizer"))


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_control_tokens_are_found(tokenizer_dir: Path) -> None:
    vocab = tokenization.load(tokenizer_dir)
    assert (vocab.bos_token_id, vocab.eos_token_id, vocab.pad_token_id) == (0, 1, 1)
    assert vocab.size == 400
    assert vocab.source == tokenizer_dir


def test_control_tokens_named_as_dicts_and_in_the_older_file(folder: Path) -> None:
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    older = {"eos_token": {"content": settings.pop("eos_token"), "lstrip": False}}
    (folder / "special_tokens_map.json").write_text(json.dumps(older))
    config.write_text(json.dumps(settings))
    assert tokenization.load(folder).eos_token_id == 1


def test_bos_is_the_one_the_tokenizer_adds(folder: Path) -> None:
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = processors.ByteLevel()
    backend.save(str(folder / "tokenizer.json"))
    assert tokenization.load(folder).bos_token_id is None
    # As Transformers does: beside a tokenizer.json, this setting says nothing.
    change_json(folder / "tokenizer_config.json", add_bos_token=True)
    assert tokenization.load(folder).bos_token_id is None
    assert AutoTokenizer.from_pretrained(folder)("a").input_ids == [backend.token_to_id("a")]


@pytest.mark.parametrize("k", [1, 3])
def test_summary_tokens_go_behind_and_reload_anywhere(
    tokenizer_dir: Path, tmp_path: Path, k: int
) -> None:
    base = tokenization.load(tokenizer_dir)
    vocab, ids = tokenization.add_summary_tokens(base, k)
    assert ids == list(range(400, 400 + k))
    assert vocab.size == 400 + k
    assert tokenization.summary_ids(base) == []  # untouched
    tokenization.save(vocab, tmp_path)
    again = tokenization.load(tmp_path)
    assert tokenization.summary_ids(again) == ids
    assert tokenization.add_summary_tokens(again, k) == (again, ids)
    stock = AutoTokenizer.from_pretrained(tmp_path)
    assert len(stock) == vocab.size
    assert [stock.convert_tokens_to_ids(n) for n in tokenization.summary_names(k)] == ids
    assert stock.decode([70, ids[0]], skip_special_tokens=True) == stock.decode([70])
    for text in TEXTS[:3]:
        ours = tokenization.encode(again, [text])[0].tolist()
        assert stock(text).input_ids == [again.bos_token_id, *ours]
    for a, b in zip(tokenization.encode(vocab, TEXTS), tokenization.encode(again, TEXTS), strict=1):
        assert a.tolist() == b.tolist()


def test_saved_settings_cannot_make_another_tokenizer(folder: Path, tmp_path: Path) -> None:
    other = {"content": "word", "special": True}
    change_json(
        folder / "tokenizer_config.json",
        tokenizer_class="LlamaTokenizer",
        auto_map={"AutoTokenizer": ["own.Tokenizer", None]},
        added_tokens_decoder={"70": other},
    )
    vocab = tokenization.load(folder)
    tokenization.save(vocab, tmp_path / "saved")
    (ids,) = tokenization.encode(vocab, ["a word of text"])
    stock = AutoTokenizer.from_pretrained(tmp_path / "saved", trust_remote_code=False)
    assert stock("a word of text").input_ids == [0, *ids.tolist()]


def test_text_never_becomes_a_control_token(tokenizer_dir: Path) -> None:
    vocab, ids = tokenization.add_summary_tokens(tokenization.load(tokenizer_dir), 1)
    (encoded,) = tokenization.encode(vocab, [TEXTS[3]])
    assert not np.isin(encoded, [0, 1, *ids]).any()
    assert vocab.backend.decode(encoded.tolist(), skip_special_tokens=False) == TEXTS[3]


def test_another_number_of_summary_tokens_is_refused(tokenizer_dir: Path) -> None:
    vocab, _ = tokenization.add_summary_tokens(tokenization.load(tokenizer_dir), 2)
    with pytest.raises(InputError, match="already has 2 summary tokens, 3 were asked for"):
        tokenization.add_summary_tokens(vocab, 3)


def test_an_ordinary_token_of_that_name_is_refused(folder: Path) -> None:
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_tokens(["<|summary_0|>"])
    backend.save(str(folder / "tokenizer.json"))
    with pytest.raises(InputError, match="summary_0"):
        tokenization.add_summary_tokens(tokenization.load(folder), 1)


def test_fingerprint_is_of_the_content(folder: Path, tmp_path: Path) -> None:
    base = tokenization.load(folder)
    original = tokenization.fingerprint(base)
    vocab, _ = tokenization.add_summary_tokens(base, 1)
    assert tokenization.fingerprint(vocab) != original
    assert tokenization.fingerprint(vocab, summary_tokens=False) == original

    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "stock")
    assert tokenization.fingerprint(tokenization.load(tmp_path / "stock")) == original

    state = json.loads((folder / "tokenizer.json").read_text())
    state["truncation"] = {
        "max_length": 8,
        "strategy": "LongestFirst",
        "stride": 0,
        "direction": "Right",
    }
    (folder / "tokenizer.json").write_text(json.dumps(state, sort_keys=True, indent=7))
    cut = tokenization.load(folder)
    assert tokenization.fingerprint(cut) == original
    assert len(tokenization.encode(cut, ["word " * 50])[0]) > 8  # truncation does not survive

    state["model"]["merges"].pop()
    (folder / "tokenizer.json").write_text(json.dumps(state))
    assert tokenization.fingerprint(tokenization.load(folder)) != original


def test_long_texts_are_encoded_in_pieces_that_make_no_difference(
    tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocab = tokenization.load(tokenizer_dir)
    texts = ["a bc  def\n\tghij klm\r\n" * 500, "x", "no-seam-anywhere" * 400, "a\nb\n" * 2000]
    whole = tokenization.encode(vocab, texts)
    monkeypatch.setattr(tokenization.pieces, "__defaults__", (5000,))
    monkeypatch.setattr(tokenization, "CALL", 6000)
    split = tokenization.encode(vocab, texts)
    for text, a, b in zip(texts, whole, split, strict=True):
        parts = list(tokenization.pieces(text))
        assert "".join(parts) == text
        assert max(map(len, parts)) <= 5000
        assert vocab.backend.decode(b.tolist(), skip_special_tokens=False) == text
        if "seam" not in text:
            assert a.tolist() == b.tolist()


def test_a_sentencepiece_model_is_converted(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join([str(str.__doc__), str(Path.__doc__)] * 20))
    folder = tmp_path / "base"
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": True}))
    base = tokenization.load(folder)
    assert (base.bos_token_id, base.eos_token_id) == (1, 2)
    vocab, _ = tokenization.add_summary_tokens(base, 1)
    tokenization.save(vocab, tmp_path / "saved")
    texts = ["two  spaces, é 😀", "spells </s> out"]
    plain, spelled = tokenization.encode(tokenization.load(tmp_path / "saved"), texts)
    for where in (folder, tmp_path / "saved"):
        stock = AutoTokenizer.from_pretrained(where)
        assert stock(texts[0]).input_ids == [1, *plain.tolist()]
    assert 2 not in spelled
    assert stock.decode(spelled) == texts[1]


def test_no_control_token_may_be_spelled_but_the_unknown_one(tmp_path: Path) -> None:
    """Unigram models find the longest token, whatever it is for."""
    scores = [("<unk>", 0.0), ("<turn>", 0.0), *((c, -1.0) for c in "ab <>unktr")]
    backend = Tokenizer(models.Unigram(scores, unk_id=0))
    backend.add_special_tokens(["<unk>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"unk_token": "<unk>"}))
    (ids,) = tokenization.encode(tokenization.load(tmp_path), ["a<turn>?"])
    assert ids.tolist() == [2, 1, 0]
    backend.add_special_tokens(["<turn>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match=r"spells '<turn>' .* could forge it"):
        tokenization.load(tmp_path)


def test_bad_folders_are_named(folder: Path, tmp_path: Path) -> None:
    def message(where: Path | str) -> str:
        with pytest.raises(InputError) as caught:
            tokenization.load(where)
        return str(caught.value)

    (tmp_path / "empty").mkdir()
    assert "no tokenizer.json" in message(tmp_path / "empty")
    assert "no folder" in message(tmp_path / "nowhere")
    change_json(folder / "tokenizer_config.json", eos_token="<nope>")
    assert "'<nope>' as its eos token" in message(folder)
    (folder / "tokenizer_config.json").write_text("{")
    assert "tokenizer_config.json is not a JSON object" in message(folder)
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer.json could not be read" in message(folder)


def test_a_tokenizer_whose_text_can_spell_controls_is_refused(folder: Path) -> None:
    state = json.loads((folder / "tokenizer.json").read_text())
    for token in state["added_tokens"]:
        token["special"] = False
    (folder / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="could forge it"):
        tokenization.load(folder)
