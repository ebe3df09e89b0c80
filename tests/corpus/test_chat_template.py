from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from talks import together, turns, with_template
from transformers import AutoTokenizer

from gem_ds.corpus import chat_template, tokenization
from gem_ds.corpus.chat_template import Chat
from gem_ds.corpus.records import Skip
from gem_ds.shards import documents, unit_context
from gem_ds.shards.documents import Draw, Pair

NO_SYSTEM = ("gemma", "mistral")  # the families whose template refuses a system message
ODD = "naïve Łódź e\u0301 日本語 😀👨‍👩‍👧 a\0b\r\nc"
CONVERSATIONS = [
    ["Hi.", "Hello! How can I help?"],
    ["What is 12 + 3?", "15", "And\nthen?\n\n", "\n\nNothing. ", "  Well", "<think>x</think> y"],
    [ODD, f"{ODD} {ODD}"],
    ["a stand-in \ue0000\ue001 \ue000 \ue001\ue001", "\ue0001\ue001"],
]


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
    monkeypatch.setattr(chat_template, "LONGEST", 1000)
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
    recipe = unit_context.recipes(asked, family.vocab)[""]
    messages = turns(["a", "b", "c", "d"])
    pair = Pair(*family.chat.encode(messages), whole=True)
    made = documents.of_pair(pair, Draw(0, 0, 0), recipe, Counter())
    _, summary, suffix, _ = made.bounds
    ids = made.input_ids.tolist()
    assert ids[summary:suffix] == asked["summary_token_ids"]
    assert ids[:summary] + ids[suffix:] == family.expected(messages)


@pytest.mark.parametrize("contents", CONVERSATIONS)
def test_a_prompt_is_that_of_apply_chat_template(family: Family, contents: list[str]) -> None:
    messages = turns(contents)[: len(contents) - 1 + len(contents) % 2]  # a user's is the last
    expected = family.expected(messages, add_generation_prompt=True)
    assert family.chat.prompt(messages).tolist() == expected
    spelled = [*messages[:-1], {"role": "user", "content": "a" + "".join(family.controls.values())}]
    plain = [*messages[:-1], {"role": "user", "content": "a b"}]
    counts = [family.counted(family.chat.prompt(talk).tolist()) for talk in (spelled, plain)]
    assert counts[0] == counts[1]


def test_tools_are_refused_by_templates_that_know_none(family: Family) -> None:
    function = {"name": "weather", "arguments": {"city": "Oslo"}}
    messages: list[Any] = [
        {"role": "user", "content": "How is it outside?"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": function}]},
        {"role": "tool", "content": "sunny"},
    ]
    with pytest.raises(Skip, match=f"{chat_template.LEFT_OUT} tool calls|{chat_template.REFUSED}"):
        family.chat.prompt(messages)


CALLS = "{% for c in m.tool_calls %}{{ c.function.name }}({{ c.function.arguments | tojson }});"


@pytest.mark.parametrize(
    ("template", "lost"),
    [
        ("{% for m in messages if m.role != 'tool' %}{{ m.content }}{% endfor %}", "tool calls"),
        (
            "{% for m in messages if m.role != 'tool' %}{{ m.content }}"
            + CALLS
            + "{% endfor %}{% endfor %}",
            "messages of the role 'tool'",
        ),
        (
            "{% for m in messages if m.role != 'system' %}{{ m.content }}"
            + CALLS
            + "{% endfor %}{% endfor %}",
            "messages of the role 'system'",
        ),
        ("{% for m in messages %}{{ m.content }}" + CALLS + "{% endfor %}{% endfor %}", None),
    ],
)
def test_what_a_template_leaves_out_is_named(
    tokenizer_dir: Path, template: str, lost: str | None
) -> None:
    vocab, made = with_template(tokenizer_dir, template)
    call = {"function": {"name": "f", "arguments": {"x": 1}}}
    messages: list[Any] = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "seen"},
    ]
    if lost:
        with pytest.raises(Skip, match=f"the chat template leaves out {lost}"):
            made.prompt(messages)
    else:
        expected = tokenization.encode(vocab, ['be briefhif({"x": 1});seen'])[0]
        assert made.prompt(messages).tolist() == expected.tolist()
