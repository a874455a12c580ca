"""The reader for a log of your own: tables of any common format, with columns under any names.

Say which of your columns is the user, the item and the time, and it checks the rest. ``genrec init LOG`` guesses the
options.
"""

from genrec.data.readers.table.read import table_sources

__all__ = ["table_sources"]
