"""Hypothesis strategies for layouts."""

from hypothesis import strategies as st
from layouts import bounds_from

from gem_ds.layout import Bounds


@st.composite
def bounds(draw: st.DrawFn, max_documents: int = 6, max_part: int = 40) -> Bounds:
    """Layouts of plain and GEM documents with one k, empty suffixes and one-token prefixes."""
    k = draw(st.sampled_from([1, 1, 2, 3, 16]))
    part = st.integers(1, max_part)
    gem = st.tuples(part, st.just(k), st.one_of(st.just(0), part))
    plain = st.tuples(part, st.just(0), st.just(0))
    documents = draw(st.lists(st.one_of(gem, plain), min_size=1, max_size=max_documents))
    return bounds_from(documents)
