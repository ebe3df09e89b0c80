"""gem_ds.flags: what every command of the project says of a flag that cannot be meant."""

import argparse
import ast
import os
import re
import runpy
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal
from unittest import mock

import pytest
from runs import ROOT

from gem_ds.errors import InputError
from gem_ds.flags import Parser, Range, check, parser_of, real, whole

FOLDERS = ("launch", "data_prep", "examples", "benchmarks")
SCRIPTS = [
    path
    for path in (*(p for folder in FOLDERS for p in sorted((ROOT / folder).glob("*.py"))),)
    if isinstance(ast.parse(path.read_text()).body[-1], ast.If)  # __name__ == "__main__"
]
NAMES = [str(path.relative_to(ROOT)) for path in SCRIPTS]
NO_NUMBERS = ("x", "", "nan", "inf", "-inf", "1e999", "-1e31", "1e31", "9" * 400, "1e3x")


def parsers_of(parser: Parser) -> Iterator[Parser]:
    """A parser and those of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


@pytest.fixture(scope="module")
def parsers() -> dict[str, Parser]:
    """The parser of every script, as the script itself makes it for ``--help``."""
    return {}


def parser_in(script: str, parsers: dict[str, Parser], patch: pytest.MonkeyPatch) -> Parser:
    if script not in parsers:
        patch.setattr(Parser, "print_help", lambda parser: parsers.setdefault(script, parser))
        patch.setattr(sys, "argv", [script, "--help"])
        patch.syspath_prepend(str((ROOT / script).parent))
        with pytest.raises(SystemExit), mock.patch.dict(os.environ):  # it may become a rank's
            runpy.run_path(str(ROOT / script), run_name="__main__")
        patch.undo()
    return parsers[script]


@pytest.mark.parametrize("script", NAMES)
def test_every_number_of_every_script_has_a_range(
    script: str, parsers: dict[str, Parser], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that made a parser of another kind has none here, and fails."""
    for parser in parsers_of(parser_in(script, parsers, monkeypatch)):
        assert type(parser) is Parser
        for action in parser._actions:
            ranged = isinstance(action.type, Range)
            number = type(action.default) in (int, float)
            assert ranged or not number, f"{script}: {action.dest} has no range"
            if not ranged:
                continue
            for text in NO_NUMBERS:
                with pytest.raises(argparse.ArgumentTypeError, match=r"is no number|out of range"):
                    action.type(text)
            if action.help != argparse.SUPPRESS:
                assert action.type.bounds in " ".join(parser.format_help().split())


@pytest.mark.parametrize("script", NAMES)
def test_no_flag_of_any_script_is_abbreviated(
    script: str, parsers: dict[str, Parser], monkeypatch: pytest.MonkeyPatch
) -> None:
    for parser in parsers_of(parser_in(script, parsers, monkeypatch)):
        for flag in parser._option_string_actions:
            short = flag[:-1]
            if len(flag) > 4 and short not in parser._option_string_actions:
                with pytest.raises(InputError, match=rf"there is no flag {short}; "):
                    parser.parse_args([short, "1"])


@dataclass(frozen=True)
class Config:
    """Flags of each kind."""

    place: str = field(metadata={"help": "a folder"})
    steps: int = field(default=3, metadata={"help": "how many", "range": whole(1)})
    rate: float | None = field(default=None, metadata={"help": "", "range": real(0, 1, above=True)})
    save: bool = field(default=True, metadata={"help": "or not"})
    kind: Literal["one", "two"] = field(default="one", metadata={"help": "of it"})
    names: list[str] = field(default_factory=list, metadata={"help": "several"})


def parsed(*arguments: str) -> Any:
    parser = parser_of(Config, "A command.")
    return Config(**vars(parser.parse_args(["--place", "here", *arguments])))


def test_flags_as_people_write_them() -> None:
    assert parsed() == Config("here")
    assert parsed("--steps=7", "--rate", "1e-3", "--kind", "two").rate == 1e-3
    assert parsed("--names", "a", "b").names == ["a", "b"]
    for text, value in (("false", False), ("No", False), ("0", False), ("TRUE", True)):
        assert parsed("--save", text).save is value
    assert parsed("--save").save is True
    assert parsed("--steps", "7", "--steps", "7").steps == 7
    assert parser_of(Config, "").parse_args(["--place", "-"]).place == "-"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stes", "7"], "there is no flag --stes; did you mean --steps?"),
        (["--step", "7"], "there is no flag --step; did you mean --steps?"),
        (["--zzz"], "there is no flag --zzz; .* --help lists all"),
        (
            ["--steps", "0"],
            "--steps 0 is out of range; give a whole number from 1 to 1,000,000,000",
        ),
        (["--steps", "-1"], "--steps -1 is out of range"),
        (["--steps", "1.5"], "--steps '1.5' is no number; give a whole number"),
        (["--rate", "-1e-3"], "--rate -1e-3 is out of range; give a number above 0, up to 1"),
        (["--rate", "-inf"], "--rate -inf is out of range"),
        (["--rate=0"], "--rate 0 is out of range"),
        (["--save", "maybe"], "--save 'maybe': give true or false"),
        (["--kind", "three"], "--kind invalid choice: 'three'"),
        (["--steps", "3", "--steps=4"], "--steps is given twice, as 3 and as 4; give it once"),
        (["--place", "there"], "--place is given twice, as here and as there"),
        (["--steps"], "--steps expected one argument"),
        (["--place="], "--place is empty; give a value"),
        (["--place", ""], "--place is empty; give a value"),
        (["more"], "unrecognized arguments: more"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=rf"^{message}") as raised:
        parsed(*arguments)
    assert "\n" not in str(raised.value)


def test_an_underscore_is_a_dash() -> None:
    """DeepSpeed's launcher writes --local_rank=0."""
    parser = Parser()
    parser.add_argument("--local-rank", type=whole(-1))
    assert parser.parse_args(["--local_rank=3"]).local_rank == 3


def test_a_subcommand_has_flags_of_its_own() -> None:
    parser = Parser()
    one = parser.add_subparsers(dest="command", required=True).add_parser("one")
    one.add_argument("--size", type=whole(1))
    assert parser.parse_args(["one", "--size", "2"]).size == 2
    for arguments in (["--size", "2", "one"], ["one", "--sise", "2"]):
        with pytest.raises(InputError, match="there is no flag --si"):
            parser.parse_args(arguments)


def test_a_number_without_a_range_is_a_fault_of_the_script() -> None:
    parser = Parser()
    parser.add_argument_group("group").add_argument("--size", type=int)
    with pytest.raises(AssertionError, match="size: give `whole` or `real`"):
        parser.parse_args([])


def test_a_config_that_was_made_in_python_is_checked_too() -> None:
    check(Config("here"))
    with pytest.raises(InputError, match="--steps 0 is out of range; give a whole number from 1"):
        check(Config("here", steps=0))
    with pytest.raises(InputError, match="--rate nan is out of range"):
        check(Config("here", rate=float("nan")))


def test_bounds_read_as_people_say_them() -> None:
    assert real(0, 1).bounds == "from 0 to 1"
    assert real(0, 1, below=True).bounds == "from 0 to below 1"
    assert real(0, 1, above=True, below=True).bounds == "above 0, below 1"
    assert 1 not in real(0, 1, below=True)
    assert 0 not in real(0, 1, above=True)
    assert re.fullmatch(r"a whole number from 0 to 65,535", str(whole(0, 65535)))


def test_help_says_range_and_default() -> None:
    shown = " ".join(parser_of(Config, "A command.").format_help().split())
    assert "how many (from 1 to 1,000,000,000; default: 3)" in shown
    assert "--debug show the traceback" in shown


def test_without_arguments_a_command_that_needs_some_shows_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        parser_of(Config, "A command.").parse_args([])
    assert ended.value.code == 2
    assert "A command." in capsys.readouterr().out


def test_a_command_that_needs_something_prints_its_help(capsys: pytest.CaptureFixture) -> None:
    needs, one_of, nothing = Parser("First."), Parser("Second."), Parser("Third.")
    needs.add_argument("--run", required=True)
    group = one_of.add_mutually_exclusive_group(required=True)
    for flag in ("--run", "--verify"):
        group.add_argument(flag)
    nothing.add_argument("--run")
    for parser, title in ((needs, "First."), (one_of, "Second.")):
        with pytest.raises(SystemExit) as ended:
            parser.parse_args([])
        assert ended.value.code == 2
        assert title in capsys.readouterr().out
    assert nothing.parse_args([]).run is None
