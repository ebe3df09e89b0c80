"""docs/architecture.md: its tables name the modules that there are, on the floors they are on."""

import ast
import re

from runs import ROOT
from test_floors import FLOOR_OF, MODULES, PACKAGE

TEXT = (ROOT / "docs" / "architecture.md").read_text()


def test_the_table_of_floors_is_the_one_that_is_tested():
    rows = re.findall(r"^\| (\d) \w+ \| (.*?) \|", TEXT, re.MULTILINE)
    shown = {name: int(floor) for floor, names in rows for name in re.findall(r"`(\w+)`", names)}
    assert shown == {module: FLOOR_OF[module] for module in MODULES}


def test_every_module_is_described_once():
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", TEXT, re.MULTILINE)
    described = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(described) == MODULES


def test_what_is_replaced_in_others_objects_is_told():
    """Attributes of DeepSpeed's engine, and forward passes, to which something is assigned."""
    told = TEXT.split("## What a run replaces")[1].split("\n## ")[0]
    found = set()
    for module in MODULES:
        for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else []
            for target in map(ast.unparse, targets):
                if re.match(r"(self\.)?_?engine\.", target) or target.endswith(".forward"):
                    found.add(target if target.startswith("engine.") else "forward")
    assert len(found) == 4
    assert {name for name in found if f"`{name}`" not in told} == set()
