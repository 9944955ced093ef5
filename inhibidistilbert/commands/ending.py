"""How the command line ends, whatever happens: an exit code, and one line where something is wrong."""

import contextlib
import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Callable

from ..support.errors import UserError, reason

FAILED, BAD_INPUT = 1, 2
_LONGEST = 80  # letters of a path that a line shows


def open_closed_streams() -> None:
    """Take up the numbers of closed standard streams.

    The next file that is opened would get such a number, and what is printed would go into that file. To print on a closed
    stdout stays an error, which `exit_code` tells; nobody reads a closed stderr.
    """
    for number, name, flags in ((0, "stdin", os.O_WRONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest number that is free
            if number:
                setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))


def exit_code(command: Callable[[], object]) -> int:
    """Run the command; its exit code.

    2 after bad input, and where the system refuses a file that the command line names; 1 after other errors, whose details
    are kept in a file.
    """
    try:
        command()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except UserError as error:
        code = _tell(str(error), BAD_INPUT)
    except Exception as error:
        broken = _why_stdout_is_broken("\n") if isinstance(error, OSError) and error.filename is None else None
        return _tell_broken_stdout(broken) if broken else _tell_unexpected(error)
    broken = _why_stdout_is_broken()
    return _tell_broken_stdout(broken) if broken else code


def _tell(message: str, code: int) -> int:
    with contextlib.suppress(OSError):
        print(f"error: {message}", file=sys.stderr, flush=True)
    return code


def _why_stdout_is_broken(probe: str = "") -> str | None:
    """Why what is printed cannot be written; None where it can. A reader that went away is not told: it knows.

    probe: printed first, since what failed once may be out of the buffer.
    """
    try:
        print(probe, end="", flush=True)
    except OSError as error:
        return None if error.errno == errno.EPIPE else error.strerror
    return None


def _tell_broken_stdout(why: str) -> int:
    with contextlib.suppress(OSError):  # or the interpreter would try once more at its end, and say so
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return _tell(f"standard output cannot be written ({why}).", FAILED)


def _tell_unexpected(error: Exception) -> int:
    named, why = None, ""
    if isinstance(error, OSError) and isinstance(error.filename, str):
        path, why = os.path.abspath(error.filename), f": {error.strerror}"
        named = _longest_argument(lambda value: path.startswith(os.path.abspath(value)))
    elif isinstance(error, UnicodeEncodeError):
        text, why = error.object, " must be UTF-8"
        named = _longest_argument(lambda value: not value.isprintable() and value in text)
    if named:
        return _tell(f"{named}{why}.", BAD_INPUT)
    return _tell(f"{type(error).__name__}: {reason(error)}. {_keep_details(error)}", FAILED)


def _longest_argument(fits: Callable[[str], bool]) -> str | None:
    """An argument of the command line with its value, the longest that `fits`; None where none does."""
    found, before = ("", ""), ""
    for word in sys.argv[1:]:
        option, equals, value = word.partition("=")
        if not (equals and word.startswith("-")):
            option, value = before if before.startswith("-") else "argument", word
        before = word
        if len(value) > len(found[1]) and fits(value):
            found = option, value
    option, value = found
    return value and f"{option} {value[:_LONGEST] + '…' * (len(value) > _LONGEST)!r}"


def _keep_details(error: Exception) -> str:
    """Write the traceback to a file; a sentence that says where."""
    details = f"{sys.argv}\n\n{''.join(traceback.format_exception(error))}"
    try:
        with tempfile.NamedTemporaryFile(prefix="inhibidistilbert-", suffix=".txt", delete=False) as file:
            file.write(details.encode(errors="backslashreplace"))
    except OSError as refusal:
        return f"Its details could not be kept ({refusal.strerror})."
    return f"This is a fault of inhibidistilbert; its details are in {file.name}."
