"""What a user's input can cause: one kind of error, and one of warning."""


class InputError(ValueError):
    """A file, value or setting from outside is not usable.

    Its message is one sentence that names the thing, says what was expected and, where there is
    something to do, what to do next. The command line prints it without a traceback.
    """


class ExistsError(InputError):
    """Something exists already where a new file or folder is to be written."""


class ResourceError(InputError):
    """The machine has no memory, open files or disk space left; no input is to blame.

    What skips an input that cannot be used must not skip it for this.
    """


class InputWarning(UserWarning):
    """An input can be used, but the result may not be what was meant."""


def plural(count: int, noun: str) -> str:
    """A number with a noun, for messages: "1 item", "2 items"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
