"""From arguments to an exit code: the work that python-fire does not do.

Fire guesses types (`[1,2]` becomes a list, `{"a": true}` a mapping of words), runs a command before
it looks at the arguments that are left over, and shows its help in a pager. Here arguments have the
types that the command's annotations state, fire is given each by its name, a command starts when
all of them are accepted, and help is made from the docstrings.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, ParamSpec, Protocol, get_type_hints

import fire
from fire.core import FireError, FireExit

from policy_server import __version__
from policy_server.commands.help_text import command_help, overview, usage
from policy_server.commands.standard_streams import (
    drop_output,
    flush_output,
    log_in_one_line,
    write_output,
)
from policy_server.commands.usage import explain, named_method, spelled_out, unknown_command
from policy_server.errors import PolicyServerError, UsageError
from policy_server.process_output import open_closed_streams

__all__ = ["Task", "Terminal", "command", "progress_bar", "run"]

Parameters = ParamSpec("Parameters")

_FAILED = 1
_WRONG_USAGE = 2
# A shell's exit codes of programs that signals end are this and the signal's number.
_BY_SIGNAL = 128
_BROKEN_PIPE = _BY_SIGNAL + signal.SIGPIPE
# What ends a program whose terminal is closed, and what `kill`, `timeout` and containers send.
_ENDING = (signal.SIGHUP, signal.SIGTERM)
_BAR_WIDTH = 40
# The options whose values may be empty: a variable of the shell that is not set is no key, and
# uvicorn believes no proxy then.
_MAY_BE_EMPTY = frozenset({"forwarded_allow_ips", "key"})


class Task:
    """A command whose arguments are known and which has not run."""

    def __init__(self, start: Callable[[], Iterator[str]]) -> None:
        """Own the command until it runs.

        Args:
            start: begins the command and gives the lines to print.
        """
        self._start = start

    def run(self) -> None:
        """Print the lines while they come."""
        for line in self._start():
            write_output(f"{line}\n")


def command(method: Callable[Parameters, Iterator[str]]) -> Callable[Parameters, Task]:
    """Make a command of a method that yields the lines to print.

    Args:
        method: its arguments are annotated with str, int, float or bool, or None besides.

    Returns:
        The method as fire calls it, with the arguments as the user typed them.
    """
    signature, types = inspect.signature(method), get_type_hints(method)

    @functools.wraps(method)
    def prepare(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Task:
        given = signature.bind(*args, **kwargs)
        for name, value in given.arguments.items():
            if isinstance(value, str):
                _check_not_empty(signature.parameters[name], value)
                given.arguments[name] = _parse(name, value, types[name])
        return Task(functools.partial(method, *given.args, **given.kwargs))

    return prepare


def run(commands: type, arguments: Sequence[str], *, program: str) -> int:
    """Run a command.

    Args:
        commands: its public methods are the commands.
        arguments: the arguments behind the program's name.
        program: the program's name, such as `python generate.py`; its last word begins messages.

    Returns:
        The exit code: 0; 1 after an error in one line on standard error; 2 after a wrong usage,
        which is explained there; 128 and the number of the signal that ended the command.
    """
    open_closed_streams()
    log_in_one_line()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    methods = dict(inspect.getmembers(commands, inspect.isfunction))
    methods = {name: method for name, method in methods.items() if not name.startswith("_")}
    signals = _EndingSignals()
    try:
        with signals:
            _run(commands, methods, arguments, program)
            flush_output()
    except UsageError as error:
        _fail(program, error.message)
        sys.stderr.write(_how_to(methods, arguments, program))
        return _WRONG_USAGE
    except PolicyServerError as error:
        return _fail(program, error.message)
    except KeyboardInterrupt:
        return _BY_SIGNAL + signals.ended_by
    except BrokenPipeError:
        drop_output()
        return _BROKEN_PIPE
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return _fail(program, f"unexpected {reason}; `PYTHONDEVMODE=1 {program} ...` shows where")
    return 0


class _EndingSignals:
    """Ends the command of a block as Ctrl-C does, at signals that would leave its files behind.

    Attributes:
        ended_by: the signal that has ended it, if one has.
    """

    def __init__(self) -> None:
        """Own what the signals do within the block."""
        self.ended_by = signal.SIGINT
        # Python lets no other thread set what a signal does. One that this process was started to
        # ignore, as by nohup, stays ignored.
        is_main = threading.current_thread() is threading.main_thread()
        self._handled = [
            number for number in _ENDING if is_main and signal.getsignal(number) is signal.SIG_DFL
        ]

    def __enter__(self) -> None:
        for number in self._handled:
            signal.signal(number, self._end)

    def __exit__(self, *_: object) -> None:
        for number in self._handled:
            signal.signal(number, signal.SIG_DFL)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.ended_by = signal.Signals(number)
        interrupt = signal.getsignal(signal.SIGINT)
        # A shell's script has it ignored in what it starts in the background.
        (interrupt if callable(interrupt) else signal.default_int_handler)(number, frame)


class Terminal(Protocol):
    """The methods of a stream that a progress bar uses."""

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""

    def write(self, text: str, /) -> int:
        """Write text."""

    def flush(self) -> None:
        """Show it."""


def progress_bar(stream: Terminal) -> Callable[[int, int], None]:
    """Return a function that draws a bar on a terminal, and does nothing on any other stream.

    Args:
        stream: the stream that the bar is drawn on.

    Returns:
        A function of the number done and the number of all. The bar goes when both are equal.
    """

    def draw(done: int, total: int) -> None:
        filled = _BAR_WIDTH * done // total
        bar = "#" * filled + "." * (_BAR_WIDTH - filled)
        stream.write("\r\x1b[K" if done == total else f"\r[{bar}] {done} of {total}")
        stream.flush()

    return draw if stream.isatty() else lambda _done, _total: None


def _run(
    commands: type,
    methods: Mapping[str, Callable[..., Any]],
    arguments: Sequence[str],
    program: str,
) -> None:
    is_help = "--help" in arguments or "-h" in arguments
    named = named_method(methods, arguments)
    if list(arguments) == ["--version"]:
        write_output(f"Policy Server {__version__}\n")
    elif not arguments or (is_help and arguments[0] in ("--help", "-h")):
        write_output(overview(program, commands, methods))
    elif is_help and named is not None:
        write_output(command_help(program, named))
    else:
        _understand(commands, methods, arguments, program).run()


def _understand(
    commands: type,
    methods: Mapping[str, Callable[..., Any]],
    arguments: Sequence[str],
    program: str,
) -> Task:
    """Return the command that the arguments ask for, with all of them accepted.

    Raises:
        UsageError: if they ask for none.
    """
    named = named_method(methods, arguments)
    if named is None:
        raise unknown_command(arguments[0], methods)
    words = [named.__name__, *spelled_out(named, arguments[1:])]
    fire.parser.DefaultParseValue = str
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            # Fire prints the result of a command; the command is run only afterwards.
            task: Task = fire.Fire(
                commands(), command=words, name=program, serialize=lambda _: None
            )
    except FireExit as ended:
        raise explain(ended.trace.elements[-1].ErrorAsStr()) from ended
    return task


def _how_to(
    methods: Mapping[str, Callable[..., Any]], arguments: Sequence[str], program: str
) -> str:
    named = named_method(methods, arguments)
    if named is None:
        return f"usage: {program} COMMAND [ARGUMENTS]\n"
    lines = usage(program, named)
    return "\n".join([f"usage: {lines[0]}", *lines[1:], ""])


def _fail(program: str, message: str) -> int:
    sys.stderr.write(f"{program.split()[-1]}: {message}\n")
    return _FAILED


def _check_not_empty(parameter: inspect.Parameter, text: str) -> None:
    """Refuse an empty text: as a path it would be the working directory, as a host every one."""
    is_option = parameter.kind is inspect.Parameter.KEYWORD_ONLY
    if not text and not (is_option and parameter.name in _MAY_BE_EMPTY):
        words = parameter.name.replace("_", "-")
        place = f"--{words}" if is_option else words.upper()
        raise FireError(f"{place}: expected a value, got an empty text")


def _parse(name: str, text: str, hint: Any) -> str | int | float | bool:  # noqa: ANN401 -- a type
    option = f"--{name.replace('_', '-')}"
    if hint is bool:
        if text not in ("True", "False"):
            raise FireError(f"{option}: takes no value, got {text!r}")
        return text == "True"
    if hint in (float, float | None):
        try:
            return float(text)
        except ValueError as error:
            raise FireError(f"{option}: expected a number, got {text!r}") from error
    if hint in (int, int | None):
        try:
            return int(text)
        except ValueError as error:
            raise FireError(f"{option}: expected a whole number, got {text!r}") from error
    return text
