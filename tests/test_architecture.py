"""docs/architecture.md: its tables name the modules that there are, on the floors they are on."""

import re

from runs import ROOT
from test_floors import FLOOR_OF, MODULES

TEXT = (ROOT / "docs" / "architecture.md").read_text()


def test_the_table_of_floors_is_the_one_that_is_tested():
    rows = re.findall(r"^\| (\d) \w+ \| (.*?) \|", TEXT, re.MULTILINE)
    shown = {name: int(floor) for floor, names in rows for name in re.findall(r"`(\w+)`", names)}
    assert shown == {module: FLOOR_OF[module] for module in MODULES}


def test_every_module_is_described_once():
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", TEXT, re.MULTILINE)
    described = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(described) == MODULES
