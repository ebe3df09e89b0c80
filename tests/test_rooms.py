"""The rooms of docs/architecture.md: what a module of gem_ds may import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gem_ds"
HERE = ""  # the package's own folder
# From the ground up. Rooms of one line do not know each other.
ORDER = (
    (HERE,),
    ("corpus", "attention"),
    ("shards",),
    ("model",),
    ("checkpoints",),
    ("training", "export"),
    ("planning", "inference"),
    ("serving", "evaluation"),
    ("commands",),
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
LIGHT = ("corpus", "shards", "planning")  # load without torch
HEAVY = {"shards.mask_image", "corpus.docstrings"}  # but these, which only few commands load
LIGHT_MODULES = (
    *("training.config", "training.recipes", "training.deepspeed_config", "training.watchdog"),
    *("serving.config", "serving.schemas", "serving.request_tokens", "serving.reader_processes"),
    *(
        "launcher",
        "process_pool",
        "inference.text_files",
        "hardware",
        "model.architecture",
        "model.flops",
    ),
)
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}


def room_of(module: str) -> str:
    return module.rpartition(".")[0]


def imports(module: str) -> set[str]:
    """The modules of gem_ds that a module imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("gem_ds") for alias in node.names), module
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:  # exports carry copies of these two: the one finds the other beside itself
            assert (module, node.module) == ("export.gem_embedding", "gem_seal"), module
            found.add("export.gem_seal")
        elif str(node.module).split(".")[0] == "gem_ds":
            folder = str(node.module).removeprefix("gem_ds").lstrip(".")
            for alias in node.names:
                name = f"{folder}.{alias.name}".lstrip(".")
                found.add(name if name in MODULES else folder)
    return found - {""}


IMPORTS = {module: imports(module) for module in MODULES}


def test_every_module_is_in_a_room() -> None:
    assert {room_of(module) for module in MODULES} == set(LEVEL)
    assert all((PACKAGE / room / "__init__.py").read_text() == "" for room in LEVEL if room)


def test_imports_go_down_only() -> None:
    upward = {
        (module, other)
        for module, others in IMPORTS.items()
        for other in others
        if room_of(other) != room_of(module) and LEVEL[room_of(other)] >= LEVEL[room_of(module)]
    }
    assert upward == set()


def test_modules_import_one_another_in_one_direction() -> None:
    settled: set[str] = set()
    while ready := {m for m in MODULES if m not in settled and IMPORTS[m] <= settled}:
        settled |= ready
    assert settled == set(MODULES), "these import each other in a circle"


@pytest.mark.parametrize("room", [*LIGHT, "others"])
def test_what_many_processes_load_is_light(room: str) -> None:
    names = {module for module in MODULES if room_of(module) == room} - HEAVY
    code = "".join(f"import gem_ds.{module}\n" for module in names or LIGHT_MODULES)
    code += "import sys; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
