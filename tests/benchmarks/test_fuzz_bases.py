"""A few bases through training and export: see benchmarks/fuzz_bases.py, which tries hundreds."""

import bases_check
import bases_folder
import bases_run
import pytest
from bases_cases import EVERY, EXACT, Case, draw
from bases_causes import Base
from bases_check import Fault
from fuzz_bases import fuzz

pytestmark = pytest.mark.slow

FROZEN = Case("llama", k=8, layout="sharded", dtype="float16")
CASES = {
    FROZEN: "trained",
    Case("gemma3_text", "paper", stage=3, mixed=False, moves=False, ties="equal head"): "trained",
    Case("qwen3", "keep", bf16=True, layout="bin", rope="linear", old_spelling=True): "trained",
    Case("mistral", faults=("dropout",)): "refused",
    Case("mamba", "paper"): "refused",
    Case("olmo2", "keep", layout="sharded", faults=("file gone",)): "refused",
}


def test_a_base_is_trained_truly_or_refused_by_name(tmp_path) -> None:
    results = list(fuzz(list(CASES), jobs=2, work=tmp_path, keep=True))
    assert {
        case: result["verdict"] for case, result in zip(CASES, results, strict=True)
    } == CASES, results
    # What was trained from another base of the same sizes is found out.
    other = bases_folder.write(Case("llama", seed=1), tmp_path / "other", tmp_path / "tok")
    shards = bases_run.shards_of(tmp_path, FROZEN.k, FROZEN.mixed)
    folder = tmp_path / "case-0"
    with pytest.raises(Fault, match="logits are"):
        bases_check.check_trained(FROZEN, other, folder / "run", folder / "export", shards)


def test_tracebacks_silence_and_wrong_reasons_are_faults(tmp_path) -> None:
    traceback = "Traceback (most recent call last):\n  …\nKeyError: 'a'\n"
    for said in (traceback, "", "saved\n", f"error: a\n{traceback}", "error: a\nerror: b\n"):
        with pytest.raises(Fault):
            bases_check.message_of(said)
    message = bases_check.message_of("loading\nerror [rank 0]: lm_head.weight is missing\n")
    base = Base(tmp_path)
    with pytest.raises(Fault, match="though nothing is wrong"):
        bases_check.check_refusal(message, base)
    base.blame("dropout", "drop")
    with pytest.raises(Fault, match="for another reason than dropout"):
        bases_check.check_refusal(message, base)
    base.blame("missing tensor", "lm_head.weight", must=True)
    assert bases_check.check_refusal(message, base) == "missing tensor"
    with pytest.raises(Fault, match="in spite of: missing tensor"):
        bases_check.check_trained(FROZEN, base, tmp_path, tmp_path, tmp_path)


def test_a_case_is_a_function_of_its_number_and_all_families_have_a_turn() -> None:
    drawn = [draw(3, number) for number in range(len(EXACT) * EVERY // (EVERY - 1) + EVERY)]
    assert drawn[7] == draw(3, 7) != draw(4, 7)
    assert {case.family for case in drawn if case.exact} == set(EXACT)
