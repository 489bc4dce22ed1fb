"""The one exception that users are meant to see."""


class InputError(ValueError):
    """Something the user gave is wrong.

    The message is one line: it names the thing, what was expected and what came. The command line prints it
    without a traceback and exits with status 2.
    """
