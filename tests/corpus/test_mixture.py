import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gem_ds.corpus import mixture, records
from gem_ds.corpus.mixture import Source
from gem_ds.errors import InputError
from gem_ds.shards import work_plan
from gem_ds.shards.config import PrepareConfig
from gem_ds.shards.dataset import Shards
from gem_ds.shards.prepare import prepare
from gem_ds.shards.work_plan import Plan


def test_shares_are_exact() -> None:
    assert mixture.parse("") == {}
    assert mixture.parse("web=1") == {"web": 1}
    assert mixture.parse("web=0.7, books=0.3") == {"web": Fraction(7, 10), "books": Fraction(3, 10)}
    assert mixture.parse("a=1/3,b=2/3") == {"a": Fraction(1, 3), "b": Fraction(2, 3)}
    assert set(mixture.parse("a=0.3333333,b=0.3333333,c=0.3333333").values()) == {Fraction(1, 3)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("web", "no share"),
        ("web=0.7,", "no new source"),
        ("=1", "no new source"),
        ("a b=1", "no new source"),
        ("a:b=1", "no new source"),
        ("web=0.5,web=0.5", "no new source"),
        ("web=", "no share"),
        ("web=x", "no share"),
        ("web=1/0", "no share"),
        ("web=nan", "no share"),
        ("web=inf", "no share"),
        ("web=0.7", "add up to 1"),
        ("web=0.7,books=0.31", "add up to 1"),
        ("web=1.5,books=-0.5", "above 0"),
        ("web=1,books=0", "above 0"),
    ],
)
def test_shares_that_make_no_mixture(text: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"--mix {text}: .*{message}"):
        mixture.parse(text)


@given(
    sizes=st.lists(st.integers(1, 10**12), min_size=1, max_size=9),
    weights=st.lists(st.integers(1, 10**7), min_size=9, max_size=9),
    total=st.one_of(st.just(0), st.integers(1, 10**13)),
)
def test_counts_are_the_nearest_that_add_up(
    sizes: list[int], weights: list[int], total: int
) -> None:
    names = [f"s{i}" for i in range(len(sizes))]
    whole = sum(weights[: len(sizes)])
    shares = {name: Fraction(w, whole) for name, w in zip(names, weights, strict=False)}
    sized = dict(zip(names, sizes, strict=True))
    found = mixture.sources(shares, sized, total, 0)
    drawn = sum(source.drawn for source in found.values())
    for name, source in found.items():
        assert abs(source.drawn - shares[name] * drawn) < 1
        assert total or source.drawn <= sized[name]
    assert drawn == total if total else drawn >= 1


def test_the_largest_remainders_are_rounded_up() -> None:
    shares = mixture.parse("a=0.25,b=0.35,c=0.4")
    found = mixture.sources(shares, {"a": 100, "b": 100, "c": 100}, 11, 0)
    assert {name: source.drawn for name, source in found.items()} == {"a": 3, "b": 4, "c": 4}
    found = mixture.sources(shares, {"a": 100, "b": 35, "c": 100}, 0, 0)
    assert {name: source.drawn for name, source in found.items()} == {"a": 25, "b": 35, "c": 40}
    with pytest.raises(InputError, match="the source b of --mix has no records; leave it out"):
        mixture.sources(shares, {"a": 1, "b": 0, "c": 1}, 0, 0)


@settings(deadline=None)
@given(
    size=st.integers(1, 300),
    drawn=st.integers(0, 900),
    seed=st.integers(0, 5),
    epochs=st.integers(1, 5),
)
def test_every_record_is_drawn_as_often_as_any_other(
    size: int, drawn: int, seed: int, epochs: int
) -> None:
    source = Source(drawn, size, seed)
    total = [0] * size
    for epoch in range(epochs):
        copies = [source.copies(i, epoch) for i in range(size)]
        assert sum(copies) == drawn
        assert max(copies) - min(copies) <= 1
        total = [a + b for a, b in zip(total, copies, strict=True)]
        assert max(total) - min(total) <= 1
    assert sum(total) == drawn * epochs


@pytest.mark.parametrize("size", [1000, 4096, 7919, 100_000])
def test_every_stretch_gives_its_share(size: int) -> None:
    """Whatever the seed: none takes one end of a corpus only, or every other record."""
    for seed in range(20):
        source = Source(size * 3 // 10, size, seed)
        copies = [source.copies(i, 1) for i in range(size)]
        for stretch in (copies[: size // 2], copies[::2], copies[size // 3 : size // 3 + 500]):
            assert abs(sum(stretch) - 0.3 * len(stretch)) < 12
    taken = [[Source(300, 1000, seed).copies(i, 0) for i in range(1000)] for seed in (1, 2)]
    assert taken[0] != taken[1]


def corpus(folder: Path) -> list[str]:
    """400 records in three files of two sources, and their inputs."""
    files = {"web": [("a", 250), ("b", 50)], "books": [("c", 100)]}
    names = []
    for source, parts in files.items():
        for name, n in parts:
            lines = [
                {"text": f"{name} {i} " * 20, "context": "c " * 20, "answer": str(i)}
                for i in range(n)
            ]
            path = folder / f"{name}.jsonl"
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            names.append(f"{source}={path}")
    return names


def drawn_documents(output: Path, epoch: int) -> Counter[int]:
    """How often each record is in the shards of an epoch."""
    shards = Shards(output)
    n = len(shards.manifest.files) // shards.manifest.epochs
    first = sum(entry["n_rows"] for entry in shards.manifest.files[: n * epoch])
    count = sum(entry["n_rows"] for entry in shards.manifest.files[n * epoch : n * (epoch + 1)])
    return Counter(int(r) for i in range(first, first + count) for r in shards.read(i).records)


def test_workers_count_the_records(
    tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as there are, of any format; the plan is the same whoever counts."""
    web, more, books = corpus(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    (tmp_path / "b.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "c.csv").write_text("text,n\n" + '"a\nb",1\n' * 100)
    names = [web, more.replace("jsonl", "json"), books.replace("jsonl", "csv")]
    monkeypatch.setattr(work_plan, "MIN_UNIT", 4000)
    plans = []
    for workers in (1, 3):
        output = tmp_path / f"out-{workers}"
        config = PrepareConfig(
            names,
            str(tokenizer_dir),
            str(output),
            mix="web=0.5,books=0.5",
            kinds="plain=1",
            workers=workers,
            only_plan=True,
        )
        assert prepare(config) is None
        plans.append(Plan.load(output))
    assert plans[0] == plans[1]
    assert {name: source.size for name, source in plans[0].mixture.items()} == {
        "web": 300,
        "books": 100,
    }
    assert len(plans[0].units) > 10
    first = [(p.input, p.first) for unit in plans[0].units for p in unit if p.input]
    assert first == [(1, 250), (2, 0)]


def test_a_source_that_cannot_be_counted_is_named(tokenizer_dir: Path, tmp_path: Path) -> None:
    names = corpus(tmp_path)
    (tmp_path / "c.jsonl").unlink()
    (tmp_path / "c.json").write_text('[{"text": "a"}')
    names[-1] = f"books={tmp_path}/c.json"
    config = PrepareConfig(
        names, str(tokenizer_dir), str(tmp_path / "out"), mix="web=0.5,books=0.5", kinds="plain=1"
    )
    with pytest.raises(InputError, match=r"c\.json is damaged or cut short"):
        prepare(config)
    assert not (tmp_path / "out" / "plan.json").exists()


@pytest.mark.parametrize(("mix_records", "expected"), [(0, [233, 100]), (900, [630, 270])])
def test_shards_hold_the_planned_mixture(
    tokenizer_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mix_records: int,
    expected: list[int],
) -> None:
    names = corpus(tmp_path)
    found: list[list[Counter[int]]] = []
    for smallest in (4000, 1 << 23):
        monkeypatch.setattr(work_plan, "MIN_UNIT", smallest)
        output = tmp_path / f"out-{smallest}"
        prepare(
            PrepareConfig(
                names,
                str(tokenizer_dir),
                str(output),
                row_length=512,
                kinds="plain=1",
                mix="web=0.7,books=0.3",
                mix_records=mix_records,
                epochs=2,
                workers=1,
            )
        )
        found.append([drawn_documents(output, epoch) for epoch in range(2)])
        assert (len(Plan.load(output).units) > 10) == (smallest == 4000)
    assert found[0] == found[1]  # whatever the units
    for counts in found[0]:
        by_source = Counter[bool]()
        for record, n in counts.items():
            by_source[records.place_of(record)[0] < 2] += n
        assert [by_source[True], by_source[False]] == expected
        web = [n for record, n in counts.items() if records.place_of(record)[0] < 2]
        assert max(web) == -(-expected[0] // 300)


def test_each_source_has_its_kinds(tokenizer_dir: Path, tmp_path: Path) -> None:
    config = PrepareConfig(
        corpus(tmp_path),
        str(tokenizer_dir),
        str(tmp_path / "out"),
        row_length=512,
        kinds="plain=1;books:pair=1",
        mix="web=0.6,books=0.4",
        mix_records=200,
        workers=1,
    )
    manifest = prepare(config)
    assert manifest
    assert {k: n for k, n in manifest.counts["documents"].items() if n} == {
        "plain": 120,
        "pair": 80,
    }
