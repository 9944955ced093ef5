"""Errors a user of the command line can mend."""

LONGEST = 1_500  # characters that somebody reads


class UserError(Exception):
    """Bad input. The message names the argument, its value and what would be right; the command line exits with 2."""

    def __str__(self) -> str:
        return one_line(super().__str__())


def reason(error: BaseException) -> str:
    """What went wrong, on one line: of an error that only wraps another, that other one's message."""
    return one_line(" ".join(str(error.__cause__ or error).split()) or type(error).__name__)


def one_line(text: str) -> str:
    """`text` on a line that can be read: without the middle of what is long, such as a value that fills a megabyte."""
    text = " ".join(text.splitlines())
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} … ({len(text) - LONGEST} characters) … {text[-LONGEST // 2 :]}"
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
