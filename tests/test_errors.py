"""How a command reports an error: one line, and the traceback behind it with --debug."""

import subprocess
import sys

PROGRAM = """
import sys
from gem_ds.errors import InputError, run

def main():
    assert "--debug" not in sys.argv  # the commands' own parsers do not see it
    kind = sys.argv[1]
    if kind == "own":
        raise InputError("rows is 0")
    if kind == "file":
        open("no-such-file")
    try:
        {}["weight"]
    except KeyError as error:
        raise InputError("cannot load the model") from error

run(main)
"""


def end(*arguments):
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    return done.stderr


def test_an_error_is_one_line():
    assert end("own") == "error: rows is 0\n"
    assert end("file") == "error: [Errno 2] No such file or directory: 'no-such-file'\n"


def test_the_line_says_where_a_traceback_is_hidden():
    assert end("library") == "error: cannot load the model (--debug shows the traceback)\n"


def test_debug_shows_what_was_raised_first():
    shown = end("library", "--debug")
    assert "KeyError: 'weight'" in shown
    assert 'File "<string>", line 13, in main' in shown
    assert shown.endswith("\nerror: cannot load the model\n")
    assert "Traceback" in end("--debug", "own")
