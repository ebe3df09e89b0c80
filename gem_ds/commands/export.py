"""Write a trained checkpoint as folders that stock libraries load.

    python launch/export.py --run runs/gem --output exports/gem

<output>/model generates (AutoModelForCausalLM, vLLM, lm-eval) and <output>/model-embed embeds
(SentenceTransformers; with one summary token and without an adapter also text-embeddings-inference
and vLLM's pooling runner). README.md tells of both.

    python launch/export.py --verify exports/gem     # every file against its sha256
    python launch/export.py --reseal exports/gem     # after a change that you have made yourself
"""

from pathlib import Path

from gem_ds.errors import InputError
from gem_ds.flags import Parser, real, whole

DTYPES = ("bfloat16", "float16", "float32")


def main() -> None:
    parser = Parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=Path, help="the --output of launch/train.py")
    what.add_argument(
        "--verify", type=Path, metavar="FOLDER", help="compare an export with its seal, whole"
    )
    what.add_argument(
        "--reseal",
        type=Path,
        metavar="FOLDER",
        help="seal an export as it is, and say what changed",
    )
    parser.add_argument("--step", type=whole(0), help="default: the newest checkpoint")
    parser.add_argument("--output", type=Path, help="with --run: a folder that is not there yet")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="default: %(default)s")
    parser.add_argument(
        "--merge-base",
        type=real(0, 1),
        default=0.0,
        metavar="SHARE",
        help="average the weights with the base's: 0.3 is 0.7 trained + 0.3 base; default: 0",
    )
    parser.add_argument("--base", help="where that base is now; default: where the run had it from")
    parser.add_argument(
        "--shard-gb",
        type=real(0, 1e6, above=True),
        default=5.0,
        metavar="GB",
        help="largest file of weights, and about the memory that it takes; default: %(default)s",
    )
    parser.add_argument(
        "--scores", type=Path, metavar="FILE", help="measured figures for the model card, as JSON"
    )
    args = parser.parse_args()
    folder = args.verify or args.reseal
    if folder and parser.given.keys() - {"verify", "reseal"}:
        raise InputError("--verify and --reseal take a folder and no other flags")
    if not folder and not args.output:
        raise InputError("--output is missing; name the folder to write")
    if folder:
        from gem_ds.export import reseal

        print("\n".join((reseal.verify if args.verify else reseal.reseal)(folder)))
        return

    import torch  # after the arguments, so that help comes at once

    from gem_ds.export import export, sentence_transformers_folder

    dtype = getattr(torch, args.dtype)
    checkpoint = export.export_run(
        *(args.run, args.step, args.output, dtype, args.merge_base, args.base),
        *(args.shard_gb, args.scores),
    )
    print(
        f"exported {checkpoint}\n\n"
        f'generate   AutoModelForCausalLM.from_pretrained("{args.output}/model")\n'
        f"embed      python launch/encode.py --model {args.output} < texts.txt > vectors.npy"
    )
    embed = args.output / sentence_transformers_folder.FOLDER
    if sentence_transformers_folder.needs_own_code(embed):
        print(f'           SentenceTransformer("{embed}", trust_remote_code=True)')
    elif embed.is_dir():
        print(f'           SentenceTransformer("{embed}")')
    else:
        reason = args.output / sentence_transformers_folder.REFUSED
        print(f"           (no {embed.name}: see {reason})")
