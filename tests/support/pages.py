"""Pages of documentation: the commands in them, and the flags that there are."""

import re
from dataclasses import fields

from runs import ROOT

from gem_ds.shards.config import PrepareConfig
from gem_ds.training.config import TrainConfig


def commands(text: str) -> list[str]:
    """The commands of all bash blocks, one a line, continued lines joined."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def flags() -> set[str]:
    """What the commands take."""
    names = {field.name for config in (TrainConfig, PrepareConfig) for field in fields(config)}
    found = {f"--{name.replace('_', '-')}" for name in names}
    commands = ROOT / "gem_ds" / "commands"
    shared = [ROOT / "gem_ds/planning/plan_flags.py", ROOT / "gem_ds/inference/text_files.py"]
    for path in [*commands.glob("*.py"), *shared]:
        found |= set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', path.read_text()))
    for path in [*shared, commands / "encode.py"]:  # where the method has a shorter name
        found |= set(re.findall(r'^\s+\w+\(\s*"(--[a-z-]+)"', path.read_text(), re.MULTILINE))
    return found
