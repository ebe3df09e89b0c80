"""Templates of other kinds, and what records hold, by the tokenizer of the tests."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from talks import EACH, together, turns, with_template
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer

from gem_ds.corpus import tokenization
from gem_ds.corpus.chat_template import Chat
from gem_ds.corpus.records import NOT_MESSAGES, SURROGATE, Record, Skip
from gem_ds.errors import InputError


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


def test_the_day_is_the_one_that_is_given(tokenizer_dir: Path) -> None:
    """As Llama 3.2 has it: a template that writes today's date would make other shards tomorrow."""
    template = (
        "{%- if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}{% endif %}"
        "{{ day }} {% for m in messages %}{{ m.content }}{% endfor %}"
    )
    vocab = tokenization.load(tokenizer_dir)
    vocab = replace(vocab, side_files={"chat_template.jinja": template})
    with pytest.raises(InputError, match="writes the day's date; give one with --chat-date"):
        Chat.of(vocab)
    context, answer = Chat.of(vocab, "2024-07-26").encode(turns(["x", "y"]))
    assert vocab.backend.decode([*context, *answer]) == "26 Jul 2024 xy"
