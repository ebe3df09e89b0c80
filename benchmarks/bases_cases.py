"""What the fuzzing of bases tries: a family, how its files are written, and what is wrong in them.

`bases_folder` makes such a base, `bases_check` says what must come of it.
"""

import random
from dataclasses import asdict, dataclass, replace

# Families that the GEM attention computes as stock Transformers does.
_EXACT = """
    apertus arcee aria_text beam bitnet cohere cohere2 cohere2_moe ctrl cwm deepseek_v2
    deepseek_v3 diffllama dots1 ernie4_5 ernie4_5_moe exaone4 exaone_moe flex_olmo flint fuyu
    gemma gemma2 gemma3 gemma3_text gemma3n_text gemma4_text glm glm4 glm4_moe glm4_moe_lite
    got_ocr2 gpt-sw3 gpt2 gpt_bigcode gpt_neox gpt_oss granite granite_swa granitemoe
    granitemoe_swa granitemoeshared helium hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v3
    hyperclovax internlm3 iquestcoder jais2 kolibri1 laguna llama mellum mimo_v2_flash minicpm3
    minimax_m2 minimax_m3_vl_text ministral ministral3 mistral mixtral modernbert-decoder moshi
    moss_transcribe_diarize nanochat olmo olmo2 olmo3 olmoe opt persimmon phi phi3 phimoe qwen2
    qwen2_moe qwen3 qwen3_moe seed_oss smollm3 solar_open starcoder2 vaultgemma
"""
# Those that read in both directions unless they are told otherwise, and so do not generate.
_ENCODERS = """
    bert bert-generation camembert data2vec-text electra ernie megatron-bert rembert roberta
    roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl
"""
# Those with layers or positions that the attention does not reach, or might not.
_OTHERS = """
    afmoe bailing_hybrid bamba bart biogpt bloom deepseek_v4 doge falcon falcon_mamba
    gpt_neox_japanese granitemoehybrid hy_v4 jamba jetmoe kimi_linear lfm2 lfm2_moe lfm3
    llama4_text mamba minimax mpt nemotron nemotron_h olmo_hybrid openai-gpt qwen3_5 qwen3_5_moe
    qwen3_5_text qwen3_next recurrent_gemma rwkv stablelm xglm xlm xlstm
"""
EXACT, ENCODERS, OTHERS = _EXACT.split(), _ENCODERS.split(), _OTHERS.split()
N_TOKENS = 400  # of the tokenizer
EVERY = 5  # one in so many cases is of a family that is not exact

RECIPES = ["lossless", "lossless", "keep", "paper"]
TIES = ["as the family"] * 4 + ["own head", "equal head", "no head"]
DTYPES = ["float32", "bfloat16", "float16", "mixed"]
LAYOUTS = ["one file", "one file", "sharded", "bin", "sharded bin"]
# "longrope" was stretched from positions for less than a row, "longer rope" from those for a row.
ROPES = ["as the family"] * 3 + ["linear", "dynamic", "yarn", "llama3", "longrope", "longer rope"]
GENERATION = {
    "none": None,
    "sampling unasked": {"temperature": 0.6, "top_p": 0.9, "do_sample": False},
    "several ends": {"eos_token_id": [1, 5], "pad_token_id": 1, "suppress_tokens": [7]},
    "nulls": {"temperature": None, "top_p": None, "max_length": None, "bos_token_id": None},
    "unknown keys": {"some_key": {"a": [1]}, "transformers_version": "4.1.0"},
    "odd values": {"max_length": 20, "min_length": 3, "repetition_penalty": 1.2, "num_beams": 3},
}
QUANTIZED = ["gptq", "awq", "bitsandbytes 4", "bitsandbytes 8", "fp8", "compressed-tensors"]
FAULTS = [
    *("missing tensor", "misshaped tensor", "NaN tensor", "infinite tensor"),
    *("surplus tensor", "old buffer", "another layer"),
    *("dropout", "dropout", "dropout", "adapter beside"),
    *(f"quantized {name}" for name in QUANTIZED),
    *("classifier", "bare model", "encoder named", "no architecture"),
    *("file cut short", "file gone", "no weights", "few rows", "unknown family"),
]


@dataclass(frozen=True)
class Case:
    """A base and a run of it. What is wrong in the base, `faults` name; the rest is harmless."""

    family: str
    recipe: str = "lossless"
    k: int = 1
    stage: int = 2
    bf16: bool = False
    mixed: bool = True  # documents with summary tokens beside plain ones
    moves: bool = True  # whether the rate is one that moves weights
    ties: str = "as the family"
    dtype: str = "float32"  # of the tensors
    said_dtype: str = ""  # in the configuration, where it says another
    layout: str = "one file"
    rows: int = N_TOKENS  # of the embedding
    generation: str = "none"
    rope: str = "as the family"
    old_spelling: bool = False
    faults: tuple[str, ...] = ()
    seed: int = 0

    @property
    def exact(self) -> bool:
        return self.family in EXACT

    def __str__(self) -> str:
        plain = asdict(Case(self.family))
        told = asdict(self)
        run = f"{self.recipe} k{self.k} zero{self.stage} {'bf16' if self.bf16 else 'fp32'}"
        run += "" if self.mixed else " plain-corpus"
        run += "" if self.moves else " no-rate"
        names = ("ties", "dtype", "said_dtype", "layout", "rows", "generation", "rope")
        parts = [f"{name}={told[name]}" for name in names if told[name] != plain[name]]
        parts += ["old-spelling"] if self.old_spelling else []
        parts += [f"WRONG: {fault}" for fault in self.faults]
        return f"{self.family} | {run} | {', '.join(parts)}"


def draw(seed: int, number: int) -> Case:
    """The case of a number. All families have their turn before one comes again."""
    turn, place = divmod(number, EVERY)
    if place == EVERY - 1:
        family = _deck(OTHERS + ENCODERS, seed, turn)
    else:
        family = _deck(EXACT, seed, turn * (EVERY - 1) + place)
    rng = random.Random(f"{seed} {number}")
    recipe = rng.choice(RECIPES)
    case = Case(
        family=family,
        recipe=recipe,
        k=rng.choice([1, 8]),
        stage=rng.choice([2, 2, 2, 3]),
        bf16=rng.random() < 0.3,
        mixed=recipe == "lossless" or rng.random() < 0.3,
        moves=recipe == "lossless" or rng.random() < 0.4,
        ties=rng.choice(TIES),
        dtype=rng.choice(DTYPES),
        said_dtype=rng.choice(["", "", *DTYPES[:3]]),
        layout=rng.choice(LAYOUTS),
        rows=rng.choice([N_TOKENS, N_TOKENS, N_TOKENS + 48]),
        generation=rng.choice(list(GENERATION)),
        rope=rng.choice(ROPES),
        old_spelling=rng.random() < 0.3,
        seed=rng.randrange(1000),
    )
    n_faults = rng.choices([0, 1, 2], [0.45, 0.48, 0.07])[0]
    return replace(case, faults=tuple(dict.fromkeys(rng.choices(FAULTS, k=n_faults))))


def _deck(families: list[str], seed: int, place: int) -> str:
    turn, place = divmod(place, len(families))
    return random.Random(f"{seed} {turn} {len(families)}").sample(families, len(families))[place]
