"""docs/architecture.md: its tables name the modules that there are, in their rooms."""

import ast
import re

from runs import ROOT
from test_rooms import MODULES, ORDER

TEXT = (ROOT / "docs" / "architecture.md").read_text()
ROOMS = TEXT.split("\n## Rooms")[1].split("\n## ")[0]


def test_the_rooms_are_told_in_their_order():
    rows = re.findall(r"^\| ((?:`\w+/`(?: itself)?(?:, )?)+) \|", ROOMS, re.MULTILINE)
    told = tuple(tuple(re.findall(r"`(\w+)/`", row)) for row in rows)
    assert told == tuple(tuple(room or "gem_ds" for room in rooms) for rooms in ORDER)


def test_every_module_is_described_once():
    described = []
    for part in ROOMS.split("\n### ")[1:]:
        room, _, table = part.partition("\n")
        names = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
        described += [f"{room}.{name}" if room != "gem_ds" else name for name in names]
    assert sorted(described) == sorted(MODULES)


def test_what_is_replaced_in_others_objects_is_told():
    """Attributes of DeepSpeed's engine, and forward passes, to which something is assigned."""
    told = TEXT.split("## What a run replaces")[1].split("\n## ")[0]
    found = set()
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else []
            for target in map(ast.unparse, targets):
                if re.match(r"(self\.)?_?engine\.", target) or target.endswith(".forward"):
                    found.add(target if target.startswith("engine.") else "forward")
    assert len(found) == 4
    assert {name for name in found if f"`{name}`" not in told} == set()
