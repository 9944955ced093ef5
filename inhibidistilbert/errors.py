"""Errors a user of the command line can mend."""


class UserError(Exception):
    """Bad input. The message names the argument, its value and what would be right; the command line exits with 2."""
