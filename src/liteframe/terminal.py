"""How the command line speaks: faults in one line, human text apart from JSON, tables and progress bars."""

from __future__ import annotations

import errno
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.status import Status
from rich.table import Table
from rich.text import Text

from liteframe.errors import DataWarning, LiteFrameError, VideoWarning


class IncompleteError(Exception):
    """Part of the work could not be done, and why has been told; `result` is the JSON of all of it."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__("incomplete")
        self.result = result


def report(command: Callable[[], dict[str, Any] | None], as_json: bool) -> None:
    """Run `command`; with `as_json` print what it returns as the last line of standard output, and nothing else there.

    Raises:
        typer.Exit: with status 1 when the input or the environment is at fault, which one line on standard error tells.
            ``LITEFRAME_DEBUG=1`` lets the exception itself through; a fault of ours always shows its traceback.
    """
    status = 0
    with _faults_in_one_line():
        try:
            with redirect_stdout(sys.stderr) if as_json else nullcontext():
                result = command()
        except IncompleteError as error:
            result, status = error.result, 1
        if as_json and result is not None:
            print(json.dumps(result))
        sys.stdout.flush()  # a closed pipe shows here, and not while Python shuts down
    if status:
        raise typer.Exit(status)


@contextmanager
def _faults_in_one_line() -> Iterator[None]:
    if os.environ.get("LITEFRAME_DEBUG") == "1":
        yield
        return
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:  # the reader has gone (`| head`): nothing to say, nobody to say it to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except LiteFrameError as error:
        _fail(str(error))
    except OSError as error:
        _fail(_of_system(error))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_out_of_memory(error):
            raise
        _fail("out of memory; ask for fewer frames, or take a smaller model or another --device")


def tell_fault(message: object) -> None:
    """One line on standard error."""
    print(f"liteframe: {' '.join(str(message).splitlines())}", file=sys.stderr)


def _fail(message: str) -> NoReturn:
    tell_fault(message)
    raise typer.Exit(1) from None


def _of_system(error: OSError) -> str:
    """An error of the operating system: which file, why, and what to do where that is plain."""
    remedy = {
        errno.ENOSPC: "; free some space or write elsewhere",
        errno.EDQUOT: "; free some space or write elsewhere",
        errno.EACCES: "; check the permissions or name another path",
        errno.EROFS: "; name a path that can be written",
        errno.EEXIST: "; name another path",
        errno.ENOTDIR: "; name a folder",
    }.get(error.errno or 0, "")
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{error.strerror or error}{remedy}"


def _is_out_of_memory(error: RuntimeError) -> bool:
    # By name and text: torch is not imported here, and on the CPU it raises a plain RuntimeError.
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Tell a warning about a video or a cache as one line, without the place in our code; others as Python does."""
    if issubclass(category, (VideoWarning, DataWarning)):
        tell_fault(message)
    else:
        (file or sys.stderr).write(warnings.formatwarning(message, category, filename, lineno, line))


def waiting(what: str) -> Status:
    """A spinner on standard error while the enclosed block runs; nothing when nobody watches."""
    return Console(stderr=True).status(Text(what))


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error; gives the callable ``(done, total)`` that moves it. Nothing when nobody watches."""
    with _bar() as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def streamed(what: str, question: str) -> Iterator[tuple[Callable[[int, int], None], Callable[[str], None]]]:
    """A bar that gives way to the question and its answer; gives ``on_progress(done, total)`` and ``on_text(text)``.

    The question is printed with the first piece of the answer: one that is refused leaves only the line that says why.
    """
    with _bar() as bar:
        task = bar.add_task(what, total=None)
        is_asked = False

        def on_text(text: str) -> None:
            nonlocal is_asked
            bar.stop()  # while it runs, rich holds back what is written to standard output
            if not is_asked:
                is_asked = True
                Console().print(Text(question, style="bold"))
            sys.stdout.write(text)
            sys.stdout.flush()

        yield lambda done, total: bar.update(task, completed=done, total=total), on_text
        on_text("\n")


def _bar() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def table(*columns: str, title: str | None = None) -> Table:
    """A table without lines; numbers, which is all but the first column, to the right."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index else "left")
    return made


def facts(values: dict[str, Any]) -> Table:
    """The plain values among `values` as rows of name and value."""
    made = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, value in values.items():
        if isinstance(value, float):
            made.add_row(name.replace("_", " "), f"{value:.4g}")
        elif isinstance(value, str | int | Path | Text):
            made.add_row(name.replace("_", " "), value if isinstance(value, Text) else Text(str(value)))
    return made
