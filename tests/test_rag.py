"""examples/rag.py answers from a folder of texts and says what was spent each way."""

import re
import sys
from pathlib import Path

import pytest
from exports import export_tiny
from runs import ROOT

sys.path.insert(0, str(ROOT / "examples"))
import rag


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    (folder / "more").mkdir(parents=True)
    (folder / "a.txt").write_text("Split a list.\n\nReturn the parts.\n\n")
    (folder / "more" / "b.md").write_text("Whereof one cannot speak.\n")
    (folder / "c.bin").write_bytes(b"\xff")
    return folder


def test_answers_both_ways(
    texts: Path,
    tokenizer_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    export = export_tiny(tokenizer_dir, tmp_path / "export", k=2, positions=256)[1]
    monkeypatch.setattr(rag, "PASSAGE_TOKENS", 14)
    question = ["--question", "What is returned?"]
    given = ["rag.py", "--model", str(export), "--texts", str(texts), *question]
    monkeypatch.setattr(sys, "argv", given)
    rag.main()
    out = capsys.readouterr().out
    assert "3 passages, the nearest: " in out
    whole, short = (int(n) for n in re.findall(r"from \w+ \w+, (\d+) tokens:", out))
    asked = ["\n\nQuestion: What is returned?\nAnswer:"]
    n_question = rag.GemModel.from_pretrained(export).count_tokens(asked)[0]
    assert short == 2 * 2 + n_question
    assert whole > short + 10


def test_a_folder_without_texts_is_refused(tokenizer_dir: Path, tmp_path: Path) -> None:
    model = rag.GemModel.from_pretrained(export_tiny(tokenizer_dir, tmp_path)[1])
    (tmp_path / "none").mkdir()
    with pytest.raises(rag.InputError, match=r"none has no \.txt or \.md files"):
        rag.passages(model, tmp_path / "none")


def test_an_empty_answer_is_said_to_be_empty(
    texts: Path,
    tokenizer_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a model that any token ends."""
    ends = {"eos_token_id": list(range(400))}
    export = export_tiny(tokenizer_dir, tmp_path / "export", k=2, positions=256, generation=ends)[1]
    given = ["rag.py", "--model", str(export), "--texts", str(texts), "--question", "What?"]
    monkeypatch.setattr(sys, "argv", given)
    rag.main()
    assert capsys.readouterr().out.count("tokens:\n(an empty answer)\n") == 2
