"""What answers look like: OpenAI's forms of embeddings, completions, chats and their streams."""

import base64
import time
from typing import Any

import numpy as np
import orjson

from gem_ds.inference.encoder import Vectors
from gem_ds.serving.schemas import EmbeddingRequest


def embedded(call: EmbeddingRequest, vectors_NC: Vectors, n_tokens: int, model: str) -> bytes:
    """The answer to a request for embeddings, as JSON."""
    vectors_NC = np.ascontiguousarray(vectors_NC[:, : call.dimensions])
    vectors_NC /= np.linalg.norm(vectors_NC, axis=1, keepdims=True)
    rows = []
    for i, vector in enumerate(vectors_NC):  # one by one, so that others have their turn
        shown: Any = vector
        if call.encoding_format == "base64":
            shown = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        row = {"object": "embedding", "index": i, "embedding": shown}
        rows.append(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY))
    around = {"object": "list", "model": model, "usage": usage(n_tokens)}
    return orjson.dumps(around)[:-1] + b',"data":[' + b",".join(rows) + b"]}"


def usage(prompt: int, completion: int | None = None) -> dict[str, int]:
    """What a request used, in tokens."""
    if completion is None:
        return {"prompt_tokens": prompt, "total_tokens": prompt}
    total = prompt + completion
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


class Form:
    """How texts are answered: completions and chats differ in names alone."""

    def __init__(self, chat: bool, answer_id: str, model: str) -> None:
        self.chat = chat
        kind = "chat.completion" if chat else "text_completion"
        prefix = "chatcmpl" if chat else "cmpl"
        self.kinds = {False: kind, True: "chat.completion.chunk" if chat else kind}
        self.shared = {"id": f"{prefix}-{answer_id}", "created": int(time.time()), "model": model}

    def whole(self, choices: list[tuple[str, str]], used: dict[str, int]) -> dict[str, Any]:
        """The answer, of each choice its text and why it ended."""
        shown = []
        for index, (text, reason) in enumerate(choices):
            message = {"message": {"role": "assistant", "content": text, "refusal": None}}
            content = message if self.chat else {"text": text}
            shown.append({"index": index, **content, "logprobs": None, "finish_reason": reason})
        return {**self.shared, "object": self.kinds[False], "choices": shown, "usage": used}

    def piece(
        self, index: int, text: str, reason: str | None, first: bool = False
    ) -> dict[str, Any]:
        """A piece of a choice's text as a stream has it."""
        role = {"role": "assistant"} if first else {}
        content = {"delta": {**role, "content": text}} if self.chat else {"text": text}
        choice = {"index": index, **content, "logprobs": None, "finish_reason": reason}
        return {**self.shared, "object": self.kinds[True], "choices": [choice]}

    def last(self, used: dict[str, int]) -> dict[str, Any]:
        """The piece of a stream that has its usage."""
        return {**self.shared, "object": self.kinds[True], "choices": [], "usage": used}
