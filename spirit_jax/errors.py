"""The one kind of error that a user's input can cause."""


class InputError(ValueError):
    """A file, value or setting from outside is not usable.

    Its message is one sentence that names the thing, says what was expected and, where there is
    something to do, what to do next. The command line prints it without a traceback.
    """
