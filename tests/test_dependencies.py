"""pyproject.toml: what is imported is declared where it belongs, and what is declared is used."""

import ast
import functools
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from runs import ROOT
from test_rooms import MODULES

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = "core"
GROUPS = {CORE: PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
DECLARED = {
    group: {canonicalize_name(Requirement(line).name) for line in lines}
    for group, lines in GROUPS.items()
}
EXTRAS = set(GROUPS) - {CORE, "dev"}
SHIPPED, OTHERS = ("gem_ds", "launch", "data_prep"), ("examples", "benchmarks", "tests")
OWN = {path.stem for folder in OTHERS for path in (ROOT / folder).rglob("*.py")} | {"gem_ds"}
# What no code here imports, and who needs it.
USED_BY = {
    "ninja": "DeepSpeed, to compile what runs need",
    "mypy": "make lint",
    "ruff": "make lint",
    "pytest-xdist": "make test",
    "tensorboard": "torch.utils.tensorboard",
    "sentencepiece": "Transformers, to convert a SentencePiece model",
    "ray": "datatrove's executor",
}
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
)


@functools.cache
def imported(path: Path) -> dict[str, bool]:
    """The distributions that a file imports, and whether anything of them at its top."""
    tree = ast.parse(path.read_text())
    found: dict[str, bool] = {}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names = [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else names
        for name in {name.partition(".")[0] for name in names}:
            if name not in OWN and name not in sys.stdlib_module_names:
                for distribution in distributions(name):
                    found[distribution] = found.get(distribution, False) or node in tree.body
    return found


@functools.cache
def modules() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def distributions(module: str) -> set[str]:
    """Those that bring a module. Of one that is not installed, its own name."""
    return {canonicalize_name(name) for name in modules().get(module, [module])}


def files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def test_what_is_imported_is_declared() -> None:
    undeclared = {}
    for path in files(*SHIPPED, *OTHERS):
        shipped = path.relative_to(ROOT).parts[0] in SHIPPED
        groups = [CORE, *EXTRAS, *([] if shipped else ["dev"])]
        known = set().union(*(DECLARED[group] for group in groups))
        if unknown := set(imported(path)) - known:
            undeclared[path] = unknown
    assert undeclared == {}


def test_what_is_declared_is_imported_or_says_who_needs_it() -> None:
    shipped = set().union(*(imported(path) for path in files(*SHIPPED)))
    anywhere = shipped.union(*(imported(path) for path in files(*OTHERS)))
    for group, names in DECLARED.items():
        used = anywhere if group == "dev" else shipped
        assert names - used - set(USED_BY) - {"gem-ds"} == set(), group
    assert set(USED_BY) <= set().union(*DECLARED.values())
    assert not set(USED_BY) & shipped


def test_all_that_make_env_installs_is_pinned_within_its_bounds() -> None:
    pins = {canonicalize_name(name): version for name, version in PINS.items()}
    installed = [lines for group, lines in GROUPS.items() if group != "liger"]
    for requirement in (Requirement(line) for lines in installed for line in lines):
        if requirement.name != PROJECT["name"]:
            pinned = pins[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(pinned), requirement
    dev = {Requirement(line).extras.pop() for line in GROUPS["dev"] if line.startswith("gem_ds")}
    assert dev == EXTRAS - {"liger"}, "Liger's kernels need a GPU"


def needing(extra: str) -> set[str]:
    """The modules of gem_ds that cannot be imported without an extra."""
    alone = DECLARED[extra] - DECLARED[CORE]
    at_top = {}
    for module, path in MODULES.items():
        body = ast.parse(path.read_text()).body
        froms = [node for node in body if isinstance(node, ast.ImportFrom)]
        names = {f"{node.module}.{alias.name}" for node in froms for alias in node.names}
        names |= {str(node.module) for node in froms}
        at_top[module] = {name.removeprefix("gem_ds.") for name in names} & set(MODULES)
    found = {m for m, p in MODULES.items() if alone & {n for n, top in imported(p).items() if top}}
    while more := {name for name, others in at_top.items() if others & found} - found:
        found |= more
    return found


def blocked(extra: str) -> list[str]:
    """The modules that an extra alone brings."""
    alone = DECLARED[extra] - DECLARED[CORE]
    return [name for name in modules() if distributions(name) & alone] + ["liger_kernel"]


def without(extra: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run code where the packages of an extra are not installed."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({blocked(extra)}))"
    line = [sys.executable, "-c", f"{hide}\n{code}"]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT)


# The modules that an extra is for: all others load without it.
FOR = {"serve": "serving.", "eval": "evaluation.", "cluster": "no module", "liger": "no module"}


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_the_core_loads_without_an_extra(extra: str) -> None:
    need = needing(extra)
    assert {name for name in need if not name.startswith(FOR[extra])} == set()
    names = ["gem_ds", *(f"gem_ds.{module}" for module in MODULES if module not in need)]
    done = without(extra, f"import {', '.join(names)}")
    assert done.returncode == 0, done.stderr


COMMANDS = {
    "serve": ["launch/serve.py --model exports/gem"],
    "eval": [
        "launch/run_eval.py mteb --model exports/gem --tasks gem16 --output results",
        "launch/run_eval.py mmlu --model exports/gem --output results",
        "launch/run_eval.py lm --model exports/gem --tasks arc_easy --output results",
    ],
}


@pytest.mark.parametrize(
    ("extra", "command"), [(extra, line) for extra, lines in COMMANDS.items() for line in lines]
)
def test_a_command_without_its_extra_says_how_to_get_it(extra: str, command: str) -> None:
    script = command.split()[0]
    run = f"import runpy; runpy.run_path({script!r}, None, '__main__')"
    done = without(extra, f"sys.argv = {command.split()}\n{run}")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert re.match(r"error: .* needs \w+, which is not installed; ", line)
    assert line.endswith(f"pip install 'gem_ds[{extra}]'")


@pytest.mark.parametrize("executor", ["slurm", "ray"])
def test_data_preparation_without_a_cluster_says_how_to_get_it(executor: str) -> None:
    code = f"""
from gem_ds import errors
from gem_ds.shards import executors
from gem_ds.shards.config import PrepareConfig
from pathlib import Path
config = PrepareConfig(input=["x"], tokenizer="x", output="x", executor={executor!r})
errors.run(lambda: executors.run(config, None, Path("x"), [0]))
"""
    done = without("cluster", code)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: --executor {executor} needs packages that are not installed")
    assert "pip install 'gem_ds[cluster]'" in line
