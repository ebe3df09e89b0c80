"""Answer a question from a folder of texts, with one set of weights for all of it.

    python examples/rag.py --model exports/gem --texts docs --question "How do I resume a run?"

The model embeds the texts' passages and the question, and writes the answer from the nearest ones:
once reading them as text, once reading only their memories, the keys and values of their summary
tokens.
"""

from pathlib import Path

import numpy as np

from gem_ds import GemModel
from gem_ds.errors import InputError, run
from gem_ds.flags import Parser, whole
from gem_ds.inference.generation import shown

PASSAGE_TOKENS = 200
ANSWER_TOKENS = 60


def passages(model: GemModel, folder: Path) -> list[str]:
    """The paragraphs of all .txt and .md files, joined up to about `PASSAGE_TOKENS` tokens."""
    found = [""]
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".txt", ".md")):
        for paragraph in path.read_text(encoding="utf-8").split("\n\n"):
            longer = f"{found[-1]}\n\n{paragraph}".strip()
            if model.count_tokens([longer])[0] <= PASSAGE_TOKENS:
                found[-1] = longer
            else:
                found.append(paragraph)
    found = [text for text in found if text]
    if not found:
        raise InputError(f"{folder} has no .txt or .md files with text; give a folder that has")
    return found


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--model", required=True, help="what launch/export.py wrote")
    parser.add_argument("--texts", required=True, type=Path, help="a folder of .txt and .md files")
    parser.add_argument("--question", required=True)
    parser.add_argument(
        "--top", type=whole(1), default=2, help="passages to read; default: %(default)s"
    )
    args = parser.parse_args()
    model = GemModel.from_pretrained(args.model)

    # Index: a unit vector a passage.
    texts = passages(model, args.texts)
    vectors_NC = model.encode(texts)

    # Retrieve: the passages of highest cosine with the question.
    scores_N = vectors_NC @ model.encode(args.question)
    nearest = [texts[i] for i in np.argsort(-scores_N)[: args.top]]
    print(f"{len(texts)} passages, the nearest: {nearest[0][:60]!r}")

    # Answer, reading the passages.
    question = f"\n\nQuestion: {args.question}\nAnswer:"
    prompt = "\n\n".join(nearest) + question
    print(f"\nfrom the passages, {model.count_tokens([prompt])[0]} tokens:")
    print(shown(model.generate(prompt, max_new_tokens=ANSWER_TOKENS, stop=["\n\n"])))

    # Answer, reading their memories, which could have been made and saved with the index.
    memories = [model.compress(text) for text in nearest]
    spent = sum(memory.k for memory in memories) + model.count_tokens([question])[0]
    print(f"\nfrom their memories, {spent} tokens:")
    print(shown(model.generate(question, memories, max_new_tokens=ANSWER_TOKENS, stop=["\n\n"])))


if __name__ == "__main__":
    run(main)
