"""Command lines: the one parser of all commands, and the ranges of their numbers.

A flag is written in full and given once, and a number lies in the range that its help states;
otherwise the parser raises an `InputError`. What flags mean together is checked by the modules that
own them.
"""

import argparse
import difflib
import re
import sys
from dataclasses import MISSING, dataclass, fields
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from gem_ds.errors import DEBUG, InputError

MANY = 10**9  # no count is larger
SEEDS = 2**64 - 1
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_NEGATIVE = re.compile(r"-(\d|\.\d|inf|nan)", re.IGNORECASE)


@dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`, and the ``type`` of an argument that takes one of them.

    `above` and `below` leave out the bound itself.
    """

    kind: type[int] | type[float]
    least: float
    most: float
    above: bool = False
    below: bool = False

    def __call__(self, text: str) -> float:
        try:
            value = self.kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number; give {self}") from None
        if value not in self:
            raise argparse.ArgumentTypeError(f"{text[:40]} is out of range; give {self}")
        return value

    def __contains__(self, value: float) -> bool:
        low = self.least < value if self.above else self.least <= value
        high = value < self.most if self.below else value <= self.most
        return low and high

    def __str__(self) -> str:
        return f"a {'whole number' if self.kind is int else 'number'} {self.bounds}"

    @property
    def bounds(self) -> str:
        """For people, such as ``above 0, up to 1``."""
        low, high = (f"{x:,}" if self.kind is int else f"{x:g}" for x in (self.least, self.most))
        if self.above:
            return f"above {low}, {'below' if self.below else 'up to'} {high}"
        return f"from {low} to {'below ' if self.below else ''}{high}"


def whole(least: int, most: int = MANY) -> Range:
    """Whole numbers, both bounds included."""
    return Range(int, least, most)


def real(least: float, most: float, above: bool = False, below: bool = False) -> Range:
    """Numbers that are finite; `above` and `below` leave out the bounds."""
    return Range(float, least, most, above, below)


def _truth(text: str) -> bool:
    try:
        return _TRUTH[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"{text!r}: give true or false") from None


class _Once(argparse.Action):
    """Stores a value; another one for the same flag is an error."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None
    ) -> None:
        assert isinstance(parser, Parser)
        before = parser.given.setdefault(self.dest, values)
        if before != values:
            parser.error(f"{option} is given twice, as {before} and as {values}; give it once")
        setattr(namespace, self.dest, values)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Adds to the help of a flag its range and its default, where the text does not say them."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        more = [action.type.bounds] if isinstance(action.type, Range) else []
        if action.default not in (None, argparse.SUPPRESS, "") and "default" not in text:
            more += ["default: %(default)s"] if action.nargs != 0 else []
        return f"{text} ({'; '.join(more)})".strip() if more else text


class Parser(argparse.ArgumentParser):
    """The parser of every command: raises `InputError`, and prints help where nothing is given."""

    def __init__(self, description: str | None = None, **more: Any) -> None:
        super().__init__(description=description, formatter_class=_Help, allow_abbrev=False, **more)
        self.given: dict[str, Any] = {}  # what the command line has said so far
        self._negative_number_matcher = _NEGATIVE
        for name in (None, "store"):
            self.register("action", name, _Once)
        if self.add_help:
            self.add_argument(  # `errors.run` reads it
                DEBUG,
                action="store_true",
                default=argparse.SUPPRESS,
                help="show the traceback behind an error",
            )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        for action in self._actions:
            assert action.type not in (int, float), f"{action.dest}: give `whole` or `real`"
        args = list(sys.argv[1:] if args is None else args)
        needs = any(a.required and a.nargs != "*" for a in self._actions)
        needs |= any(group.required for group in self._mutually_exclusive_groups)
        if not args and needs:
            self.print_help()
            sys.exit(2)
        self.given = {}
        return super().parse_known_args(self._spelled(args), namespace)

    def error(self, message: str) -> Any:
        raise InputError(re.sub(r"^argument (\S+):", r"\1", message))

    def _spelled(self, args: list[str]) -> list[str]:
        """The arguments; in flags ``_`` is written as ``-``. Refuses flags that there are not."""
        spelled: list[str] = []
        for i, argument in enumerate(args):
            name, equals, value = argument.partition("=")
            is_flag = len(name) > 1 and name[0] == "-" and not _NEGATIVE.match(name)
            if argument == "--" or (self._subparsers and not is_flag):
                return [*spelled, *args[i:]]  # of a subcommand: its own parser does that
            if is_flag and " " not in name:
                name = self._name(name)
                empty = not value if equals else args[i + 1 : i + 2] == [""]
                if empty and self._option_string_actions[name].required:
                    raise InputError(f"{name} is empty; give a value")
            spelled.append(name + equals + value)
        return spelled

    def _name(self, name: str) -> str:
        known = self._option_string_actions
        if name in known:
            return name
        dashed = name.replace("_", "-")
        if dashed in known:
            return dashed
        near = difflib.get_close_matches(dashed, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"{self.prog} --help lists all"
        raise InputError(f"there is no flag {name}; {hint}")


def parser_of(config: type, description: str | None) -> Parser:
    """A parser whose flags are the fields of a dataclass.

    The type of a field is that of its flag: `str`, `bool`, `list[str]`, a ``Literal`` of choices,
    or a number. A field's metadata are arguments of ``add_argument``, and ``range``: a `Range`,
    which a number must have.
    """
    parser = Parser(description)
    for field, (name, hint) in zip(fields(config), get_type_hints(config).items(), strict=True):
        how = {key: value for key, value in field.metadata.items() if key != "range"}
        if isinstance(hint, UnionType):
            (hint,) = set(get_args(hint)) - {NoneType}
        if field.default is not MISSING:
            how["default"] = field.default
        elif field.default_factory is not MISSING:
            how["default"] = field.default_factory()
        else:
            how["required"] = True
        if hint is bool:
            how |= {"type": _truth, "nargs": "?", "const": True, "metavar": "true/false"}
        elif get_origin(hint) is Literal:
            how["choices"] = get_args(hint)
        elif get_origin(hint) is list:
            how.setdefault("action", "store")
            how |= {"nargs": "+"} if how["action"] == "store" else {}
        elif hint is not str:
            how["type"] = field.metadata["range"]
        parser.add_argument(f"--{name.replace('_', '-')}", **how)
    return parser


def check(config: Any) -> None:
    """Raise `InputError` for a field of a dataclass that lies outside its range."""
    for field in fields(config):
        allowed, value = field.metadata.get("range"), getattr(config, field.name)
        if allowed and value is not None and value not in allowed:
            flag = field.name.replace("_", "-")
            raise InputError(f"--{flag} {value} is out of range; give {allowed}")
