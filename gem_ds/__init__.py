"""gem_ds: decoder-only language models that both embed and generate (GEM, arXiv 2506.04344)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gem_ds.inference import memory_files as memory_files
    from gem_ds.inference.gem_model import GemModel as GemModel
    from gem_ds.inference.memory_files import Memory as Memory

__version__ = "0.1.0"
__all__ = ["GemModel", "Memory", "__version__", "memory_files"]


def __getattr__(name: str) -> Any:
    """What needs torch, loaded when it is asked for."""
    if name == "GemModel":
        from gem_ds.inference.gem_model import GemModel

        return GemModel
    if name in ("Memory", "memory_files"):
        from gem_ds.inference import memory_files

        return memory_files if name == "memory_files" else memory_files.Memory
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
