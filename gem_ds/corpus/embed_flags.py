"""The flags that launch/encode.py and launch/compress.py share: texts, and what reads them."""

from gem_ds.flags import Parser, whole


def parser(description: str | None) -> Parser:
    found = Parser(description)
    add = found.add_argument
    add("--model", required=True, metavar="FOLDER", help="what launch/export.py wrote")
    add("--input", default="-", metavar="FILE", help="default: standard input")
    add(
        "--format",
        choices=["text", "jsonl", "csv", "parquet", "arrow"],
        help="of the input: a text a line, or the field of a record; by its ending",
    )
    add("--field", default="text", metavar="NAME", help="default: %(default)s")
    add("--id-field", metavar="NAME", help="default: the text's number, from 0")
    add(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="what the model computes in; a GPU the weights' own, a CPU float32",
    )
    add("--verify", action="store_true", help="hash the whole model, not at its first load alone")
    add("--batch-tokens", type=whole(1), default=8192, metavar="N", help="tokens at once")
    return found
