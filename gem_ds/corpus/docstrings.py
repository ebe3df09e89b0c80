"""Docstrings as a corpus: English text that every machine with the environment already has.

Source files are parsed, never imported, so the corpus depends only on the installed versions. What
lives here is finding, cleaning and splitting the docstrings; tokenizing them is elsewhere.
"""

import ast
import hashlib
import importlib.util
import inspect
import json
import os
import re
import sysconfig
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from gem_ds.errors import InputError
from gem_ds.files import replacing

PACKAGES = (
    *("accelerate", "datasets", "deepspeed", "huggingface_hub", "joblib", "mpmath", "networkx"),
    *("numpy", "pandas", "pyarrow", "scipy", "sentence_transformers", "sklearn", "sympy"),
    *("tokenizers", "torch", "transformers"),
)
# Tests, vendored copies and generated code say little and say it often.
SKIPPED_FOLDERS = {
    *(
        "__pycache__",
        "_vendor",
        "dist-packages",
        "externals",
        "idlelib",
        "lib2to3",
        "site-packages",
    ),
    *("test", "tests", "testing"),
}
MIN_CHARS = 40  # shorter entries ("Return self.") teach nothing
DEV_TITLE_WORDS, DEV_TITLE_CHARS = 3, 160
DEV_TEXT_CHARS = 200

_SIGNATURE = re.compile(r"^[\w.]+\([^\n]*\)(\s*(->|:)[^\n]*)?$")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s")
_UNDERLINE = re.compile(r"^[=\-~*^#+\"]{3,}$", re.MULTILINE)
_DOC_CALLS = {"add_newdoc", "add_docstr", "_add_docstr"}


@dataclass(frozen=True)
class Entry:
    """One documented name: `title` is the first sentence, `text` all that follows it."""

    id: str
    title: str
    text: str


def split_title(doc: str) -> tuple[str, str]:
    """(first sentence on one line, the rest) of a cleaned docstring.

    A leading call signature, as C-level documentation has it, belongs to neither; nor does the
    underline of a heading.
    """
    first, _, rest = doc.strip().partition("\n")
    if _SIGNATURE.match(first.strip()):
        doc = rest
    paragraph, _, rest = doc.strip().partition("\n\n")
    lines = paragraph.split("\n")
    if len(lines) > 1 and _UNDERLINE.match(lines[1].strip()):  # a heading, then perhaps more
        return lines[0].strip(), "\n".join([*lines[2:], "", rest]).strip()
    sentence = _SENTENCE_END.split(" ".join(paragraph.split()), maxsplit=1)
    return sentence[0], "\n\n".join([*sentence[1:], rest]).strip()


def entries_in(source: str, module: str) -> Iterator[Entry]:
    """The documented names of one Python source text, in its order.

    Raises `SyntaxError` where the text is no Python of this version.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        tree = ast.parse(source)
    for name, doc in _documented(tree, module):
        title, text = split_title(inspect.cleandoc(doc))
        if len(title) + len(text) >= MIN_CHARS:
            yield Entry(name, title, text)


def _documented(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        doc = ast.get_docstring(node, clean=False)
        if doc is not None:
            yield name, doc
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return  # names inside a function are nobody's interface
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _documented(child, f"{name}.{child.name}")
        elif isinstance(child, ast.If | ast.Try | ast.With):
            yield from _documented(child, name)
        elif isinstance(child, ast.Expr) and isinstance(child.value, ast.Call):
            yield from _attached(child.value)


def _attached(call: ast.Call) -> Iterator[tuple[str, str]]:
    """The text that `add_newdoc(place, name, text)` or `add_docstr(object, text)` attaches."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else None
    function = call.func.id if isinstance(call.func, ast.Name) else function
    if function not in _DOC_CALLS or len(call.args) < 2:
        return
    *places, text = call.args
    if isinstance(text, ast.Tuple) and text.elts:  # numpy: (method name, text)
        places.append(text.elts[0])
        text = text.elts[-1]
    doc = _constant_text(text)
    if doc:
        yield ".".join(ast.unparse(place).strip("'\"") for place in places), doc


def _constant_text(node: ast.expr) -> str:
    """The constant parts of a string expression: `"a" + "b".format(x)` gives `ab`."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _constant_text(left) + _constant_text(right)
        case ast.Call(func=ast.Attribute(value=value, attr="format")):
            return _constant_text(value)
    return ""


def topics_in(source: str) -> Iterator[Entry]:
    """The language topics of `pydoc_data/topics.py`, one dictionary literal of heading and text."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for key, text in ast.literal_eval(node.value).items():
                title, rest = split_title(text)
                yield Entry(f"pydoc.topics.{key}", title, rest)


def source_files(packages: Iterable[str] = PACKAGES) -> list[tuple[str, str]]:
    """(path, module name) of every source file of the standard library and the installed packages.

    Sorted within each package; packages that are not installed are left out.
    """
    roots = [(Path(sysconfig.get_path("stdlib")), "")]
    for package in packages:
        spec = importlib.util.find_spec(package)  # finds, does not import, a top-level package
        if spec is not None and spec.submodule_search_locations:
            roots.append((Path(spec.submodule_search_locations[0]), package))
    return [(path, module) for root, name in roots for path, module in _walk(root, name)]


def _walk(root: Path, package: str) -> Iterator[tuple[str, str]]:
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in SKIPPED_FOLDERS)
        for file in sorted(files):
            if file.endswith(".py"):
                path = Path(folder, file)
                parts = path.relative_to(root).with_suffix("").parts
                parts = parts[:-1] if parts[-1] == "__init__" else parts
                yield str(path), ".".join([package, *parts] if package else parts)


def _read(file: tuple[str, str]) -> list[Entry]:
    path, module = file
    try:
        with tokenize.open(path) as stream:
            source = stream.read()
        if module == "pydoc_data.topics":
            return list(topics_in(source))
        return list(entries_in(source, module))
    except (SyntaxError, UnicodeDecodeError):  # templates, and sources of other Python versions
        return []


def collect(files: list[tuple[str, str]], workers: int = 1) -> list[Entry]:
    """All entries of `files` in their order, each text once, ids made unique by `#2`, `#3` …

    The same for every number of `workers` (processes).
    """
    if workers == 1:
        found = [_read(file) for file in files]
    else:
        with ProcessPoolExecutor(workers) as pool:
            found = list(pool.map(_read, files, chunksize=32))
    seen: set[str] = set()
    names: Counter[str] = Counter()
    entries = []
    for entry in (entry for of_file in found for entry in of_file):
        same = _normal(entry.title + " " + entry.text)
        if same in seen:
            continue
        seen.add(same)
        names[entry.id] += 1
        n = names[entry.id]
        entries.append(entry if n == 1 else replace(entry, id=f"{entry.id}#{n}"))
    return entries


def split(entries: list[Entry], n_dev: int) -> tuple[list[Entry], list[Entry]]:
    """(train, held-out) where nothing held out can be known from the rest.

    Held out are the `n_dev` entries of lowest id hash among those with a title of at least three
    words (and at most 160 characters) and a text of at least 200 characters, such that title and
    the text's first 200 characters stand nowhere else and more than half of the text is on lines
    found in no other entry (inherited and copied documentation differs in a name or two).
    Raises `InputError` when fewer qualify.
    """
    titles = Counter(_normal(entry.title) for entry in entries)
    starts = Counter(_normal(entry.text)[:DEV_TEXT_CHARS] for entry in entries)
    lines = Counter(line for entry in entries for line in {*_lines(entry.text)})

    def is_distinct(entry: Entry) -> bool:
        own = _lines(entry.text)
        unique = sum(len(line) for line in own if lines[line] == 1)
        return (
            len(entry.title.split()) >= DEV_TITLE_WORDS
            and len(entry.title) <= DEV_TITLE_CHARS
            and len(entry.text) >= DEV_TEXT_CHARS
            and titles[_normal(entry.title)] == 1
            and starts[_normal(entry.text)[:DEV_TEXT_CHARS]] == 1
            and 2 * unique > sum(map(len, own))
        )

    candidates = sorted(
        (hashlib.sha256(entry.id.encode()).hexdigest(), entry.id)
        for entry in entries
        if is_distinct(entry)
    )
    if len(candidates) < n_dev:
        raise InputError(
            f"only {len(candidates)} of {len(entries)} entries can be held out, {n_dev} were "
            "asked for; ask for fewer or install more of the packages"
        )
    dev_ids = {name for _, name in candidates[:n_dev]}
    train = [entry for entry in entries if entry.id not in dev_ids]
    return train, [entry for entry in entries if entry.id in dev_ids]


def _normal(text: str) -> str:
    return " ".join(text.lower().split())


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def write(entries: Iterable[Entry], path: Path) -> int:
    """Write JSONL lines with `id`, `title`, `text` (title included) and `rest` (the text without
    it), whole or not at all. Returns the bytes of text.
    """
    n_bytes = 0
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as stream:
        for entry in entries:
            text = f"{entry.title}\n{entry.text}".strip()
            record = {"id": entry.id, "title": entry.title, "text": text, "rest": entry.text}
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
            n_bytes += len(text.encode())
    return n_bytes
