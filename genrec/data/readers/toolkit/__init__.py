"""What every reader needs, by idea: files, lines, fields, JSON, Parquet, accounted batches, the feedback chain."""

from genrec.data.readers.toolkit.batches import (
    LINE,
    REPEATED_ITEM,
    REPEATED_JUDGMENT,
    REPEATED_REQUEST,
    REPEATED_USER,
    Batch,
    LogSource,
    SeenKeys,
    blank,
    parts_of,
)
from genrec.data.readers.toolkit.columns import (
    YEAR_2000,
    YEAR_2200,
    filled,
    finite,
    milliseconds,
    parse_flags,
    seconds,
    whole,
)
from genrec.data.readers.toolkit.delimited import delimited_batches
from genrec.data.readers.toolkit.feedback import deepest_stage, events_of, reaches
from genrec.data.readers.toolkit.files import files_at, files_by_kind, find_one, is_glob, no_file, plain_name, sibling
from genrec.data.readers.toolkit.json_lines import id_lists, json_batches, text_lists
from genrec.data.readers.toolkit.lines import RAW, read_lines, skipped_files, text_batches
from genrec.data.readers.toolkit.options import check_options, choice, did_you_mean, number, switch
from genrec.data.readers.toolkit.parquet import parquet_batches

__all__ = [
    "LINE",
    "RAW",
    "REPEATED_ITEM",
    "REPEATED_JUDGMENT",
    "REPEATED_REQUEST",
    "REPEATED_USER",
    "YEAR_2000",
    "YEAR_2200",
    "Batch",
    "LogSource",
    "SeenKeys",
    "blank",
    "check_options",
    "choice",
    "deepest_stage",
    "delimited_batches",
    "did_you_mean",
    "events_of",
    "files_at",
    "files_by_kind",
    "filled",
    "find_one",
    "finite",
    "id_lists",
    "is_glob",
    "json_batches",
    "milliseconds",
    "no_file",
    "number",
    "parquet_batches",
    "parse_flags",
    "parts_of",
    "plain_name",
    "reaches",
    "read_lines",
    "seconds",
    "sibling",
    "skipped_files",
    "switch",
    "text_batches",
    "text_lists",
    "whole",
]
