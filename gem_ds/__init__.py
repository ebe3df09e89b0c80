"""gem_ds: decoder-only language models that both embed and generate (GEM, arXiv 2506.04344)."""

__version__ = "0.1.0"
