"""The one error a user can cause, and how a command ends. Nothing else lives here."""

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

DEBUG = "--debug"  # a flag of every command
REPEAT_SECONDS = 5
STOPPED = 75  # exit status: to be continued (EX_TEMPFAIL of sysexits.h)


class InputError(ValueError):
    """Something the user gave is wrong. The message says what, where and what to do.

    Where another library found it, raise this ``from`` that library's exception.
    """


class StoppedError(Exception):
    """A run ended before its last step because it was asked to, and can be continued."""

    def __init__(self, message: str, status: int = STOPPED) -> None:
        super().__init__(message)
        self.status = status


@contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Import what an extra of this package brings: an `InputError` says how to get what is missing.

    `what` is what needs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).startswith("gem_ds"):
            raise
        raise InputError(
            f"{what} needs {error.name}, which is not installed; pip install 'gem_ds[{name}]'"
        ) from None


def reason(error: Exception) -> str:
    """The first line of an exception that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def run(main: Callable[[], None]) -> None:
    """Run a command: an `InputError` or `OSError` becomes one line on stderr and exit status 2.

    With the flag ``--debug``, which is taken out of the command line here, the traceback stands
    before that line. Without it, the line says so where an exception of a library is behind it.

    Ctrl-C becomes one line too, and exit status 130; a run that was asked to stop has
    the status that it wants, by default `STOPPED`.

    Any other exception is a fault of this program and keeps its traceback. Under a launcher the
    line names the rank that found the error. Ranks other than 0 wait a little first: of an error
    that all ranks find, the launcher then ends them before they repeat it.
    """
    debug = DEBUG in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != DEBUG]
    try:
        main()
    except (InputError, OSError) as error:
        rank = os.environ.get("RANK")
        if rank not in (None, "0"):
            time.sleep(REPEAT_SECONDS)
        if debug:
            traceback.print_exception(error)
        print(_line(error, rank, debug), file=sys.stderr, flush=True)
        sys.exit(2)
    except StoppedError as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(stopped, file=sys.stderr, flush=True)
        sys.exit(stopped.status)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr, flush=True)
        sys.exit(130)


def _line(error: Exception, rank: str | None, debug: bool) -> str:
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    where = "" if rank is None or alone else f" [rank {rank}]"
    hidden = error.__cause__ is not None and not isinstance(error.__cause__, OSError)
    hint = f" ({DEBUG} shows the traceback)" if hidden and not debug else ""
    return f"error{where}: {error}{hint}"
