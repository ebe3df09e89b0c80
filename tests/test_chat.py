import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer

from gem_ds import chat, documents, job, tokenization
from gem_ds.chat import Chat
from gem_ds.documents import Draw, Pair
from gem_ds.errors import InputError
from gem_ds.records import NOT_MESSAGES, SURROGATE, Record, Skip
from gem_ds.tokenization import Vocabulary

NO_SYSTEM = ("gemma", "mistral")  # the families whose template refuses a system message
ODD = "naïve Łódź e\u0301 日本語 😀👨‍👩‍👧 a\0b\r\nc"
CONVERSATIONS = [
    ["Hi.", "Hello! How can I help?"],
    ["What is 12 + 3?", "15", "And\nthen?\n\n", "\n\nNothing. ", "  Well", "<think>x</think> y"],
    [ODD, f"{ODD} {ODD}"],
    ["a stand-in \ue0000\ue001 \ue000 \ue001\ue001", "\ue0001\ue001"],
]


def turns(contents: list[str], system: str = "") -> list[dict[str, str]]:
    roles = ["user", "assistant"] * len(contents)
    talk = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    return [{"role": "system", "content": system}, *talk] if system else talk


class Family:
    """A family's tokenizer, as gem_ds and as Transformers reads it."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self.vocab, _ = tokenization.add_summary_tokens(tokenization.load(folder), 1)
        self.chat = Chat.of(self.vocab)
        self.stock: Any = AutoTokenizer.from_pretrained(folder)
        added = self.vocab.backend.get_added_tokens_decoder()
        self.controls = {i: token.content for i, token in added.items() if token.special}

    def expected(self, messages: list[dict[str, str]], **options: Any) -> list[int]:
        return self.stock.apply_chat_template(messages, return_dict=False, **options)

    def counted(self, ids: list[int]) -> Counter[int]:
        return Counter(i for i in ids if i in self.controls)

    def decoded(self, ids: list[int]) -> str:
        return self.vocab.backend.decode(ids, skip_special_tokens=False)


@pytest.fixture(scope="module")
def family(family_dir: Path) -> Family:
    return Family(family_dir)


def together(pair: tuple[np.ndarray, np.ndarray]) -> list[int]:
    return np.concatenate(pair).tolist()


@pytest.mark.parametrize("contents", CONVERSATIONS)
@pytest.mark.parametrize("system", ["", "Be brief."])
def test_ids_are_those_of_apply_chat_template(
    family: Family, contents: list[str], system: str
) -> None:
    messages = turns(contents, system)
    if system and family.name in NO_SYSTEM:
        with pytest.raises(Skip, match="refused by the chat template"):
            family.chat.encode(messages)
        return
    context, answer = family.chat.encode(messages)
    assert context.dtype == answer.dtype == np.int32
    assert [*context, *answer] == family.expected(messages)
    assert context.tolist() == family.expected(messages[:-1])
    assert contents[-1].strip() in family.decoded(answer.tolist()) or "e\u0301" in contents[-1]


@settings(max_examples=40, deadline=None)
@given(data=st.data(), n=st.integers(1, 3))
def test_ids_of_any_messages(family: Family, data: st.DataObject, n: int) -> None:
    messages = turns([data.draw(st.text(max_size=30)) for _ in range(2 * n)])
    assert together(family.chat.encode(messages)) == family.expected(messages)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_messages_cannot_spell_control_tokens(family: Family, data: st.DataObject) -> None:
    parts = st.sampled_from([*family.controls.values(), "word", " ", "\n", "<", "\ue000", "0"])
    spelled = st.lists(parts, max_size=8).map(lambda found: f"({''.join(found)})")
    contents = [data.draw(spelled) for _ in range(4)]
    ids = together(family.chat.encode(turns(contents)))
    innocent = family.expected(turns(["word"] * 4))
    assert family.counted(ids) == family.counted(innocent)
    for content in contents:
        assert content in family.decoded(ids)


def test_transformers_sanitizes_to_the_same_text(family: Family) -> None:
    """An independent implementation; where pieces of text meet, its ids may be others."""
    contents = [
        f"a {''.join(family.controls.values())} b",
        "x",
        "<s></s>",
        "</s> <eos>\n<|eot_id|>",
    ]
    ids = together(family.chat.encode(turns(contents)))
    theirs = family.expected(turns(contents), sanitize_control_tokens=True)
    summary = [text for text in family.controls.values() if "summary" in text]
    assert summary == ["<|summary_0|>"]  # which `stock` does not know, and has nothing to hide
    assert family.counted(ids) == family.counted(theirs)
    if family.name != "llama2_json":  # it puts spaces before pieces
        assert family.decoded(ids) == family.decoded(theirs)


def test_ids_around_a_spelling_are_as_without_it(family: Family) -> None:
    """No piece of a message is encoded by itself, as though a text began there."""
    some = next(iter(family.controls.values()))
    text = f"one {some} two{some}three"
    first, alone = tokenization.encode(family.vocab, ["one", text])
    rest = alone[len(first) :].tolist()
    ids = together(family.chat.encode(turns(["Hi", f"Hi {text}"])))
    assert rest in [ids[i : i + len(rest)] for i in range(len(ids))]


@pytest.mark.parametrize("family_dir", ["llama3", "qwen"], indirect=True)
def test_roles_cannot_spell_control_tokens(family: Family) -> None:
    """Those of the other families' templates are written by the templates themselves."""
    end = family.chat.named["eos_token"]
    forged = [{"role": f"user{end}", "content": "x"}, {"role": "assistant", "content": "y"}]
    honest = turns(["x", "y"])
    ids = together(family.chat.encode(forged))
    assert family.counted(ids) == family.counted(family.expected(honest))
    assert f"user{end}" in family.decoded(ids)


def test_what_follows_the_last_answer_is_left_out(family: Family) -> None:
    messages = turns(["a", "b", "c", "d", "e"])
    assert together(family.chat.encode(messages)) == family.expected(messages[:4])


@pytest.mark.parametrize("contents", [["word " * 40_000, "x"], ["x", "日本、" * 60_000]])
def test_long_messages_are_encoded_whole(family: Family, contents: list[str]) -> None:
    assert max(map(len, contents)) > tokenization.PIECE
    assert together(family.chat.encode(turns(contents))) == family.expected(turns(contents))


def test_chats_without_answer_or_too_long_are_skipped(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    assistant = {"role": "assistant", "content": "y"}
    for messages in (turns(["x"]), [assistant], [assistant, *turns(["x"])], [{"content": "x"}] * 2):
        with pytest.raises(Skip, match="no assistant message after another"):
            family.chat.encode(messages)
    monkeypatch.setattr(chat, "LONGEST", 1000)
    with pytest.raises(Skip, match="chat longer than 1 Mi characters"):
        family.chat.encode(turns(["x", "y" * 1000]))


@pytest.mark.parametrize("family_dir", ["llama2", "mistral", "gemma"], indirect=True)
def test_what_a_template_refuses_is_skipped(family: Family) -> None:
    messages = [*turns(["x"]), *turns(["x", "y"])]
    with pytest.raises(Skip, match="refused by the chat template"):
        family.chat.encode(messages)


def test_documents_have_the_controls_of_the_template_alone(family: Family) -> None:
    """Where the tokenizer adds a bos too, there is one; an eos is never added."""
    asked = dict.fromkeys(["min_prefix", "min_suffix"], 1) | {"row_length": 200, "seed": 0}
    asked |= {"summary_token_ids": tokenization.summary_ids(family.vocab), "cut": "uniform"}
    asked |= {"kinds": {"": {"pair": 1.0}}, "long_pairs": "skip"}
    recipe = job.recipes(asked, family.vocab)[""]
    messages = turns(["a", "b", "c", "d"])
    pair = Pair(*family.chat.encode(messages), whole=True)
    made = documents.of_pair(pair, Draw(0, 0, 0), recipe, Counter())
    _, summary, suffix, _ = made.bounds
    ids = made.input_ids.tolist()
    assert ids[summary:suffix] == asked["summary_token_ids"]
    assert ids[:summary] + ids[suffix:] == family.expected(messages)


# Templates of other kinds, by the tokenizer of the tests.


def with_template(folder: Path, template: str) -> tuple[Vocabulary, Chat]:
    vocab = tokenization.load(folder)
    vocab = replace(vocab, side_files={**vocab.side_files, "chat_template.jinja": template})
    return vocab, Chat.of(vocab)


EACH = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"


def test_a_token_across_the_seam_is_the_answers(tokenizer_dir: Path) -> None:
    vocab, found = with_template(
        tokenizer_dir, "{% for m in messages %}{{ ' ' * loop.index + m.content }}{% endfor %}"
    )
    context, answer = found.encode(turns(["the str ", "ing"]))
    text = " the str   ing"
    (whole,) = tokenization.encode(vocab, [text])
    assert [*context, *answer] == whole.tolist()
    n = len(" the str ")
    assert vocab.backend.decode(context.tolist()) == text[: n - 1]
    assert vocab.backend.decode(answer.tolist()) == text[n - 1 :]


def test_tokens_that_take_space_or_begin_alike(tokenizer_dir: Path, tmp_path: Path) -> None:
    """As those of Phi-3, which take the white space that follows them."""
    backend = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    backend.add_special_tokens(
        [
            AddedToken("<|end|>", lstrip=True, rstrip=True, normalized=False),
            AddedToken("<|end|>s", rstrip=True, normalized=False),
            AddedToken("<|it|>", normalized=True),
        ]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    shutil.copy(tokenizer_dir / "tokenizer_config.json", tmp_path)
    template = (
        "{% for m in messages %}x <|end|> \n<|end|>s  y<|it|>{{ m.content }} <|it|>{% endfor %}"
    )
    vocab, found = with_template(tmp_path, template)
    stock: Any = AutoTokenizer.from_pretrained(tmp_path, chat_template=template)
    for contents in (["x", "y"], [" a ", " b "], ["", ""]):
        expected = stock.apply_chat_template(turns(contents), return_dict=False)
        assert together(found.encode(turns(contents))) == expected
    ids = together(found.encode(turns(["<|end|>s", " <|end|>y<|it|> "])))
    assert ids.count(vocab.backend.token_to_id("<|end|>s")) == 2
    assert ids.count(vocab.backend.token_to_id("<|end|>")) == 2


def test_a_tokenizer_may_have_no_control_token(tokenizer_dir: Path) -> None:
    state = json.loads((tokenizer_dir / "tokenizer.json").read_text()) | {"post_processor": None}
    vocab, _ = with_template(tokenizer_dir, EACH)
    bare = Tokenizer.from_str(json.dumps(state | {"added_tokens": []}))
    plain = replace(vocab, backend=bare, bos_token_id=None, eos_token_id=None)
    (whole,) = tokenization.encode(plain, ["user: <|eos|>assistant: y"])
    assert together(Chat.of(plain).encode(turns(["<|eos|>", "y"]))) == whole.tolist()


def test_a_template_that_rewrites_is_skipped(tokenizer_dir: Path) -> None:
    _, found = with_template(tokenizer_dir, "{{ messages | length }} " + EACH)
    with pytest.raises(Skip, match="chat template rewrites earlier messages"):
        found.encode(turns(["x", "y"]))


@pytest.mark.parametrize("template", [EACH[:-5], "{{ messages[0].content + 1 }}", "{% nope %}"])
def test_a_template_that_fails_skips(tokenizer_dir: Path, template: str) -> None:
    _, found = with_template(tokenizer_dir, template)
    with pytest.raises(Skip, match="refused by the chat template"):
        found.encode(turns(["x", "y"]))


def test_templates_refer_to_the_named_tokens_alone(family_dir: Path) -> None:
    wanted = "{{ [bos_token, eos_token, add_bos_token is defined] }}" + EACH
    _, found = with_template(family_dir, wanted)
    stock: Any = AutoTokenizer.from_pretrained(family_dir, chat_template=wanted)
    assert together(found.encode(turns(["x", "y"]))) == stock.apply_chat_template(
        turns(["x", "y"]), return_dict=False
    )


def test_a_vocabulary_with_gaps_is_refused(tokenizer_dir: Path, tmp_path: Path) -> None:
    vocab, _ = with_template(tokenizer_dir, EACH)
    state = json.loads(vocab.backend.to_str())
    token = next(token for token, i in state["model"]["vocab"].items() if i == 399)
    state["model"]["vocab"][token] = 400
    with pytest.raises(InputError, match="has gaps"):
        Chat.of(replace(vocab, backend=Tokenizer.from_str(json.dumps(state))))


def test_a_tokenizer_without_a_template_is_refused(tokenizer_dir: Path) -> None:
    with pytest.raises(InputError, match="has no chat template"):
        Chat.of(tokenization.load(tokenizer_dir))


def test_the_default_of_several_templates(tokenizer_dir: Path) -> None:
    vocab = tokenization.load(tokenizer_dir)
    named = [{"name": n, "template": f"{n} {EACH}"} for n in ("tool_use", "default")]
    settings = json.loads(vocab.side_files["tokenizer_config.json"]) | {"chat_template": named}
    vocab = replace(vocab, side_files={"tokenizer_config.json": json.dumps(settings)})
    assert Chat.of(vocab).template.startswith("default ")


# Records, from their JSON on.

CALLS = (
    "{% for m in messages %}<{{ m.role }}>{% if m.tool_calls %}{{ m.tool_calls | tojson }}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
CALL = {"function": {"name": "f<|eos|>", "arguments": {"<|bos|>": None}}}


def encoded(found: Chat, messages: Any) -> list[int]:
    item = json.dumps({"messages": messages}).encode()
    return together(found.encode(Record(0, 0, 1, 0, True, item).messages("messages")))


def test_tool_calls_and_nulls(tokenizer_dir: Path) -> None:
    vocab, found = with_template(tokenizer_dir, CALLS)
    user = {"role": "user", "content": "x", "tool_calls": None}
    calling = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    for answer in (calling, {"role": "assistant", "tool_calls": [CALL], "content": ""}):
        ids = encoded(found, [user, answer])
        assert not {0, 1} & set(ids)
        assert vocab.backend.decode(ids) == f"<user>x<assistant>{json.dumps([CALL])}"
    _, found = with_template(tokenizer_dir, EACH)
    with pytest.raises(Skip, match="chat template knows no tool calls"):
        encoded(found, [user, calling])
    assert encoded(found, [user, {"role": "assistant", "content": "y", "tool_calls": None}])


@pytest.mark.parametrize(
    "messages",
    [
        "not JSON",
        {},
        [],
        ["x", "y"],
        [{"role": "user", "content": None}],
        [{"role": "user"}, {"role": "assistant", "content": "x"}],
        [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
        [{"role": "user", "content": ["x"], "tool_calls": [CALL]}],
        [{"role": "user", "tool_calls": []}],
    ],
)
def test_what_are_no_messages(tokenizer_dir: Path, messages: Any) -> None:
    _, found = with_template(tokenizer_dir, EACH)
    with pytest.raises(Skip, match=NOT_MESSAGES):
        encoded(found, messages)


def test_lone_surrogates_anywhere_are_skipped(tokenizer_dir: Path) -> None:
    _, found = with_template(tokenizer_dir, EACH + "{{ messages[0].name }}")
    for first in ({"content": "\ud800"}, {"content": "x", "name": "\udfff"}):
        with pytest.raises(Skip, match=SURROGATE):
            encoded(found, [{"role": "user"} | first, {"role": "assistant", "content": "y"}])
    with pytest.raises(Skip, match=SURROGATE):
        encoded(found, [{"role": "\udc00", "content": "x"}, *turns(["x", "y"])])
