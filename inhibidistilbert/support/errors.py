"""Errors a user of the command line can mend."""


class UserError(Exception):
    """Bad input. The message names the argument, its value and what would be right; the command line exits with 2."""


def reason(error: BaseException) -> str:
    """What went wrong, on one line: of an error that only wraps another, that other one's message."""
    return " ".join(str(error.__cause__ or error).split())
