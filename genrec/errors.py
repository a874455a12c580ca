"""The one exception type that means "the user can fix this"."""


class UserError(Exception):
    """A mistake in a file, a key or an argument.

    The message is one line: what is wrong (file, row or key), what was expected, and what to do.
    The command line prints it without a traceback and exits with code 2.
    """
