"""The floors of docs/architecture.md: a module imports from its own floor and those below only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gem_ds"
FLOORS = {
    0: """errors flags files names gem_seal layout draws records compression stores streams
          json_documents delimited folders inputs tables sources row_order tokenization sentences
          documents mixture units manifest shards packing chat tally job texts sharding pool
          local finish prepare_config cluster prepare verification inspection segments positives
          recipes config ds_json corpus bpe lock claim ranks stopping watchdog shapes flops expected
          zero visits gathering communication activations memory hardware speed ways plan_files
          plan plan_flags plan_advice plan_report long_texts quantization text_files vector_files
          written embed_flags serving_config serving_schemas serving_inputs serving_readers""",
    1: """hf_config tensor_file forward small_model one_token_attention probe dist metrics masks
          picture kernels pieces sdpa flex attention objectives contrastive
          cross_entropy recompute profiling reference prefill batches data lazy partitions
          checkpoint saving elastic health record extensions run_folder ds_keys bulk""",
    2: """base_model adapter_files adapters fusing model frozen merge gem_config
          gem_embedding base_names export_output export_weights sealing reseal
          export_embed model_card export encode memories memory_files decoding
          inference embed_files decoding_batch""",
    3: """assemble preflight build rehearsal engine evaluate serving_answers serving_metrics
          serving_log serving_jobs serving_turns serving_batches serving_deadlines serving_door
          serving_protocol serving_connections server serve eval_results eval_data eval_tasks
          eval_items eval_mteb eval_lm eval_reconstruct eval_scores eval_compare""",
}
FLOOR_OF = {module: floor for floor, modules in FLOORS.items() for module in modules.split()}
# The lowest floor from where a library may be imported, at the top of a module.
LIBRARIES = {
    "torch": 1,
    "deepspeed": 1,
    "safetensors": 1,
    "transformers": 2,
    "peft": 2,
    "mteb": 3,
    "lm_eval": 3,
    "sentence_transformers": 3,
    "fastapi": 3,
}
# Registering a function with Transformers is all that these want of it.
EXCEPTIONS = {
    "attention": {"transformers"},
    "small_model": {"transformers"},
    "one_token_attention": {"transformers"},
}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imports(path: Path) -> tuple[set[str], set[str]]:
    """The modules of gem_ds that a file imports anywhere, and the libraries at its top."""
    tree = ast.parse(path.read_text())
    inside, libraries = set(), set()
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # Exports carry copies of these two: the one finds the other beside itself.
            assert node.level == (path.stem == "gem_embedding" and node.module == "gem_seal"), (
                f"{path.name}: imports are absolute"
            )
            module = f"gem_ds.{node.module}" if node.level else str(node.module)
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "gem_ds" else []
            names = names or [module]
        for name in names:
            first, _, rest = name.partition(".")
            if first == "gem_ds":
                inside.add(rest.split(".")[0])
            elif node in tree.body:
                libraries.add(first)
    return inside, libraries


def test_every_module_has_a_floor() -> None:
    assert set(MODULES) <= set(FLOOR_OF), "a new module: say in FLOORS where it lives"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_no_higher_floor(module: str) -> None:
    floor = FLOOR_OF[module]
    inside, libraries = imports(PACKAGE / f"{module}.py")
    too_high = {other for other in inside - {""} if FLOOR_OF[other] > floor}
    too_high |= {library for library in libraries if LIBRARIES.get(library, 0) > floor}
    assert too_high == EXCEPTIONS.get(module, set()), f"{module} is on floor {floor}"


def test_modules_import_one_another_in_one_direction() -> None:
    below = {module: imports(PACKAGE / f"{module}.py")[0] for module in MODULES}
    settled: set[str] = set()
    while ready := {m for m in MODULES if m not in settled and below[m] <= settled}:
        settled |= ready
    assert settled == set(MODULES), "these import each other in a circle"


def test_floor_zero_loads_without_torch() -> None:
    names = [f"gem_ds.{module}" for module in MODULES if FLOOR_OF[module] == 0]
    code = f"import sys, {', '.join(names)}; print({{'torch', 'transformers'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
