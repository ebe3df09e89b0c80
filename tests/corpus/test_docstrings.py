"""Docstrings are found, cleaned, told apart and held out without leaking."""

import json
from pathlib import Path

import pytest

from gem_ds.corpus import docstrings
from gem_ds.corpus.docstrings import Entry
from gem_ds.errors import InputError

SOURCE = '''
"""A module about measuring coffee.

It has more to say.
"""
import this_module_does_not_exist

raise SystemExit("never imported")


class Cup:
    """A vessel that holds
    some coffee. And more of it.

    Parameters
    ----------
    size : int
    """

    if True:

        def fill(self):
            """Fill the cup up to its brim with something."""

            def inner():
                """A name inside a function is nobody's interface."""

    def short(self):
        """Tiny."""


add_newdoc("kitchen.core", "pour", """pour(x, /)\\n\\nPour all of x into the sink by your side.""")
add_newdoc("kitchen.core", "Jug", ("lift", "Lift the jug carefully above the table, then wait."))
torch._C._add_docstr(grind, r"""
grind(beans) -> Powder

Grinds the beans to a fine powder.
""" + "Keyword {args}".format(**common))
'''


@pytest.mark.parametrize(
    ("doc", "title", "text"),
    [
        ("One line only", "One line only", ""),
        ("A title\nover two lines. A second sentence.\n\nRest.", "A title over two lines.", None),
        ("f(x, y) -> z\n\nComputes z.\n\nMore.", "Computes z.", "More."),
        ('The "assert" statement\n**********************\n\nBody.', 'The "assert" statement', None),
        ("Uses v1.2 of it. Then more.", "Uses v1.2 of it.", "Then more."),
        ("", "", ""),
    ],
)
def test_title_is_the_first_sentence(doc: str, title: str, text: str | None) -> None:
    got_title, got_text = docstrings.split_title(doc)
    assert got_title == title
    assert text is None or got_text == text


def test_no_word_is_lost_between_title_and_text() -> None:
    doc = "First sentence here. Second\nsentence.\n\n    indented block\n\nThe end."
    title, text = docstrings.split_title(doc)
    assert f"{title} {text}".split() == doc.split()
    assert "    indented block" in text


def test_entries_in_parses_without_importing() -> None:
    entries = {entry.id: entry for entry in docstrings.entries_in(SOURCE, "kitchen.cup")}
    assert list(entries) == [
        "kitchen.cup",
        "kitchen.cup.Cup",
        "kitchen.cup.Cup.fill",
        "kitchen.core.pour",
        "kitchen.core.Jug.lift",
        "grind",
    ]
    assert entries["kitchen.cup.Cup"].title == "A vessel that holds some coffee."
    assert entries["kitchen.cup.Cup"].text.endswith("Parameters\n----------\nsize : int")
    assert entries["kitchen.core.pour"].title == "Pour all of x into the sink by your side."
    assert entries["grind"].text == "Keyword {args}"


def test_topics_in_reads_the_dictionary() -> None:
    source = "topics = {'assert': 'The \"assert\" statement\\n******\\n\\nAssert statements are.'}"
    (entry,) = docstrings.topics_in(source)
    expected = Entry("pydoc.topics.assert", 'The "assert" statement', "Assert statements are.")
    assert entry == expected


def test_source_files_know_this_environment_and_skip_tests() -> None:
    files = docstrings.source_files(["numpy", "no_such_package_here"])
    modules = [module for _, module in files]
    assert {"numpy", "numpy.linalg", "argparse", "pydoc_data.topics"} <= set(modules)
    assert "numpy.tests" not in modules
    assert not any(".tests." in module for module in modules)
    assert len(modules) == len(set(modules))


def _folder_with(tmp_path: Path, docs: dict[str, str]) -> list[tuple[str, str]]:
    for name, doc in docs.items():
        (tmp_path / f"{name}.py").write_text(f'"""{doc}"""\n')
    return [(str(tmp_path / f"{name}.py"), name) for name in docs]


def test_collect_is_the_same_for_every_number_of_workers_and_drops_repeats(tmp_path: Path) -> None:
    docs = {f"m{i}": f"Sentence number {i // 2} of a module that says something." for i in range(9)}
    files = _folder_with(tmp_path, docs)
    (tmp_path / "bad.py").write_text("def (:\n")
    (tmp_path / "latin.py").write_bytes(b'"""caf\xe9 without a declared encoding, unreadable"""')
    files += [(str(tmp_path / "bad.py"), "bad"), (str(tmp_path / "latin.py"), "latin")]
    (tmp_path / "again.py").write_text('"""Another text under a name that stands already."""')
    files.append((str(tmp_path / "again.py"), "m0"))
    entries = docstrings.collect(files)
    assert [entry.id for entry in entries] == ["m0", "m2", "m4", "m6", "m8", "m0#2"]
    assert docstrings.collect(files, workers=2) == entries


def _entry(name: str, title: str | None = None, text: str | None = None) -> Entry:
    body = "\n".join(f"Line {n} of the text about {name}, which is long enough." for n in range(8))
    return Entry(name, title or f"All about the thing {name}", text or body)


def test_split_holds_out_only_what_the_rest_does_not_tell() -> None:
    good = [_entry(f"good{i}") for i in range(20)]
    copied = _entry("source").text
    bad = [
        _entry("short title", title="Two words"),
        _entry("long title", title="word " * 50),
        _entry("short text", text="Too short to be found."),
        _entry("same title 1", title="A title that stands twice"),
        _entry("same title 2", title="A  Title that stands TWICE"),
        _entry("source", text=copied),
        _entry("copy", text="One line of its own, and then the same again.\n" + copied),
        _entry("same start", text=copied + "\n" + "and another ending, which is quite long" * 20),
    ]
    train, dev = docstrings.split(good + bad, 20)
    assert dev == good
    assert train == bad
    train_8, dev_8 = docstrings.split(bad + good[::-1], 8)  # chosen by id, not by order
    assert {entry.id for entry in dev_8} < {entry.id for entry in good}
    assert {entry.id for entry in docstrings.split(good + bad, 8)[1]} == {
        entry.id for entry in dev_8
    }
    assert len(train_8) == 20
    with pytest.raises(InputError, match="only 20 of 28 entries can be held out, 21"):
        docstrings.split(good + bad, 21)


def test_write_gives_a_line_an_entry(tmp_path: Path) -> None:
    entries = [Entry("a.b", "Tïtle", "Text\nof it."), Entry("c", "Alone", "")]
    n_bytes = docstrings.write(entries, tmp_path / "train.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").open()]
    text, rest = "Tïtle\nText\nof it.", "Text\nof it."
    assert lines[0] == {"id": "a.b", "title": "Tïtle", "text": text, "rest": rest}
    assert lines[1] == {"id": "c", "title": "Alone", "text": "Alone", "rest": ""}
    assert n_bytes == len((text + "Alone").encode())
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]
