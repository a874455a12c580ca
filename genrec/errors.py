"""The exception type for mistakes that the user can correct, and messages for the limits of the machine."""

from __future__ import annotations

import errno


class UserError(Exception):
    """A mistake in a file, a key or an argument.

    The message is one line: what is wrong (file, row or key), what was expected, and what to do.
    The command line prints it without a traceback and exits with code 2.
    """


_NO_SPACE = ("No space left on device", "Disk quota exceeded", " requested and ")  # the last: numpy
_NO_MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory", "std::bad_alloc", "out of memory")


def machine_limit(error: BaseException | None) -> str | None:
    """One line with the remedy when an error, or one of its causes, means a full disk or too little memory; else None.

    Libraries wrap these in their own exceptions (safetensors, Polars, torch), so the message counts beside the type.
    """
    while error is not None:
        words = str(error)
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(part in words for part in _NO_SPACE):
            filename = getattr(error, "filename", None)
            where = f" ({filename})" if filename else ""
            return f"the disk is full{where}; free some space and run the same command again, what was finished is kept"
        if (
            isinstance(error, MemoryError)
            or type(error).__name__ == "OutOfMemoryError"
            or getattr(error, "errno", None) == errno.ENOMEM
        ):
            return _TOO_LITTLE
        if isinstance(error, RuntimeError | OSError) and any(part in words for part in _NO_MEMORY):
            return _TOO_LITTLE
        error = error.__cause__ or error.__context__
    return None


_TOO_LITTLE = (
    "out of memory; raise training.accumulate, lower training.batch_size, training.valid_requests or "
    "decoding.batch_size, or set training.negatives, and run the same command again"
)
