"""Write a trained checkpoint as folders that stock libraries load.

    python launch/export.py --run runs/gem --output exports/gem

<output>/model generates (AutoModelForCausalLM, vLLM, lm-eval) and <output>/model-embed embeds
(SentenceTransformers, text-embeddings-inference, vLLM's pooling runner).
"""

import argparse
import sys
from pathlib import Path

from gem_ds.errors import run

DTYPES = ("bfloat16", "float16", "float32")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="the --output of launch/train.py")
    parser.add_argument("--step", type=int, help="default: the newest checkpoint")
    parser.add_argument("--output", type=Path, required=True, help="a folder that is not there yet")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="default: %(default)s")
    parser.add_argument(
        "--merge-base",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="average the weights with the base's: 0.3 is 0.7 trained + 0.3 base; default: 0",
    )
    parser.add_argument("--base", help="where that base is now; default: where the run had it from")
    if len(sys.argv) == 1:
        parser.print_help()
        sys.exit(2)
    args = parser.parse_args()

    import torch  # after the arguments, so that help comes at once

    from gem_ds import export

    dtype = getattr(torch, args.dtype)
    checkpoint = export.export_run(
        args.run, args.step, args.output, dtype, args.merge_base, args.base
    )
    print(
        f"exported {checkpoint}\n\n"
        f'generate   AutoModelForCausalLM.from_pretrained("{args.output}/model")\n'
        f"embed      python launch/encode.py --model {args.output} < texts.txt > vectors.npy"
    )
    if (args.output / "model-embed").is_dir():
        print(f'           SentenceTransformer("{args.output}/model-embed")')
    else:
        print(f"           (no model-embed: see {args.output / export.EMBED_REFUSED})")


if __name__ == "__main__":
    run(main)
