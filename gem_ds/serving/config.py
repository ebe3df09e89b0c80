"""The flags of a server, and what they must be."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gem_ds.errors import InputError
from gem_ds.flags import Range, check, real, whole

KEY_VARIABLE = "GEM_API_KEY"
LONGEST_KEY = 4096  # characters; servers and proxies take heads of some 8 to 16 KB
LONG_TEXTS = REFUSE, CUT = ("refuse", "cut")


def _flag(default: Any, text: str, allowed: Range | None = None, **more: Any) -> Any:
    return field(default=default, metadata={"help": text, "range": allowed, **more})


@dataclass(frozen=True)
class ServeConfig:
    """What `serve.serve` is to do. The metadata of the fields makes the script's flags."""

    model: str = field(metadata={"help": "what launch/export.py wrote", "metavar": "FOLDER"})
    name: str = _flag("", "what requests call the model; default: the name of its folder")
    verify: bool = _flag(False, "hash the whole model, not at its first load alone")
    host: str = _flag("127.0.0.1", "address to listen on; 0.0.0.0 for all of this machine's")
    port: int = _flag(
        8000, "port to listen on; 0 for a free one, which is printed", whole(0, 65535)
    )
    cors_origin: list[str] = field(
        default_factory=list,
        metadata={
            "help": "origin whose web pages may ask this server, http://localhost:3000 say, or * "
            "for all; give it several times, or several with commas between",
            "action": "append",
            "metavar": "ORIGIN",
        },
    )
    api_key_file: str = _flag(
        "", f"file with the key that requests must have; or the variable {KEY_VARIABLE}"
    )
    long_texts: str = _flag(
        REFUSE, "texts to embed that the model has no room for", choices=LONG_TEXTS
    )
    max_new_tokens: int = _flag(1024, "most tokens that a text may be asked for", whole(1))
    max_inputs: int = _flag(2048, "most texts, or prompts times n, of a request", whole(1))
    max_body_mb: float = _flag(8.0, "most megabytes of a request", real(1e-6, 1e6))
    max_queue: int = _flag(256, "most requests at work or waiting; others get status 429", whole(1))
    max_batch_tokens: int = _flag(8192, "tokens that the model reads at once", whole(1))
    max_together: int = _flag(32, "most texts written at once", whole(1))
    max_cache_tokens: int = _flag(
        65536, "tokens whose keys and values are kept for those", whole(1)
    )
    timeout_seconds: float = _flag(
        300.0, "a request that takes longer gets status 504", real(1e-6, 1e6)
    )
    max_connections: int = _flag(
        1024,
        "most connections; when there are more, those that have waited longest for their client "
        "are closed",
        whole(1, 10**6),
    )
    head_seconds: float = _flag(
        10.0, "a connection whose request's head takes longer is closed", real(1e-3, 1e6)
    )
    body_seconds: float = _flag(
        60.0, "a request whose body takes longer gets status 408", real(1e-3, 1e6)
    )
    idle_seconds: float = _flag(
        30.0, "a connection without a new request is closed after so long", real(1e-3, 1e6)
    )
    stop_seconds: float = _flag(
        30.0,
        "the server ends in so many seconds when it is asked to stop; what is under way has most "
        "of them",
        real(0, 1e6),
    )
    readers: int = _flag(
        2, "processes that read requests; from 2 on, one is for small ones alone", whole(1, 256)
    )

    def __post_init__(self) -> None:
        check(self)
        if self.long_texts not in LONG_TEXTS:
            raise InputError(f"--long-texts {self.long_texts}: choose {' or '.join(LONG_TEXTS)}")
        for origin in self.origins:
            if not _is_origin(origin):
                raise InputError(
                    f"--cors-origin {origin!r} is no origin; give it as browsers do, scheme://host "
                    "or scheme://host:port in lower case, without a path, or * for all"
                )

    @property
    def served_name(self) -> str:
        """What requests call the model."""
        return self.name or Path(self.model).resolve().name

    @property
    def origins(self) -> list[str]:
        """The origins of `cors_origin`, one by one."""
        return [one.strip() for given in self.cors_origin for one in given.split(",")]

    def api_key(self) -> str | None:
        """The key that requests must have, if any.

        Raises `InputError` for one that no client can send in a header.
        """
        if self.api_key_file:
            where = self.api_key_file
            try:
                key = Path(where).read_text(encoding="utf-8").strip()
            except UnicodeDecodeError:
                raise InputError(
                    f"the API key in {where} is no text in UTF-8; write one there"
                ) from None
            except OSError as error:
                raise InputError(
                    f"cannot read --api-key-file {where} ({error.strerror}); give a file with a key"
                ) from None
        elif KEY_VARIABLE in os.environ:
            key, where = os.environ[KEY_VARIABLE].strip(), f"the variable {KEY_VARIABLE}"
        else:
            return None
        if not key:
            raise InputError(f"the API key in {where} is empty; write one there")
        if not (key.isascii() and key.isprintable()) or len(key) > LONGEST_KEY:
            raise InputError(
                f"the API key in {where} cannot be sent in a header; write one line of at most "
                f"{LONGEST_KEY} ASCII characters there"
            )
        return key


def _is_origin(text: str) -> bool:
    """Whether browsers may send this as the origin of a page."""
    try:
        parts = urlsplit(text)
        usual = {"http": 80, "https": 443}.get(parts.scheme, -1) == parts.port
    except ValueError:
        return False
    whole = f"{parts.scheme}://{parts.netloc}"
    names_host = bool(parts.scheme and parts.hostname) and not set(parts.netloc) & set("@* ")
    return text in ("*", "null") or (names_host and text == whole.lower() and not usual)
