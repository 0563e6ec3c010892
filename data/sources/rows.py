"""Rows of .jsonl, .csv, .tsv and .parquet files, each with its place: a dict by column."""

import csv
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from data.files import CSV, JSON, PARQUET
from documents import read_rows, read_text, reject_lfs_pointer
from errors import UsageError, quote, unknown

Row = tuple[str, dict[str, object]]  # its place, as `FILE, line N`, and its fields


def read_columns(file: Path, fields: Sequence[str]) -> Iterator[Row]:
    """The rows of a file, with these fields at least. Raises UsageError for a row that lacks one, and for no rows."""
    empty = True
    for where, row in READERS[file.suffix.lower()](file, fields):
        empty = False
        for field in fields:
            if field not in row:
                raise missing_field(where, field, row)
        yield where, row
    if empty:
        raise UsageError(f"{file} has no rows")


def missing_field(where: str | Path, field: str, has: Iterable[str]) -> UsageError:
    """The error for a file or row without a field."""
    return UsageError(f"{where}: {unknown('field', field, has)}; choose one with data.field or --field")


def _json_rows(file: Path, fields: Sequence[str]) -> Iterator[Row]:
    for where, value in read_rows(file):
        if not isinstance(value, dict):
            raise UsageError(f"{where} is {quote(value)}, not an object with fields")
        yield where, value


def _table_rows(file: Path, fields: Sequence[str]) -> Iterator[Row]:
    """The rows of a .csv or .tsv file below its header. Raises UsageError for stray quotes or cells.

    Also for a .tsv row of several lines each of which could be a row: the quotes around it may belong to the texts.
    """
    csv.field_size_limit(sys.maxsize)
    tab = "\t" if file.suffix.lower() == ".tsv" else None
    lines = list[str]()  # of the current row
    reader = csv.DictReader(
        _record_lines(io.StringIO(read_text(file), newline=""), lines), delimiter=tab or ",", strict=True
    )
    try:
        header = list(reader.fieldnames or ())
        if len(set(header)) < len(header):
            raise UsageError(f"{file}: the header has a column twice: {', '.join(map(quote, header))}")
        lines.clear()
        for row in reader:
            where = f"{file}, line {reader.line_num:,}"
            if None in row or None in row.values():
                raise UsageError(f"{where} has more or fewer cells than the {len(header)} of the header")
            filled = [line for line in lines if line.strip()]
            if tab and len(filled) > 1 and all(line.count(tab) == len(header) - 1 for line in filled):
                raise UsageError(
                    f"{where} ends a quoted cell of {len(filled):,} lines, each of which could be a row: "
                    f"if the quotes belong to the texts, write the rows as .jsonl"
                )
            lines.clear()
            yield where, row
    except csv.Error as error:
        first = reader.reader.line_num - len(lines) + 1
        raise UsageError(
            f"{file}, from line {first:,} on: {error}; a cell that begins with a quote must end with one, and quotes "
            f"inside it must be doubled"
        ) from None


def _record_lines(lines: Iterable[str], record: list[str]) -> Iterator[str]:
    """Yield the lines, and append each to `record`."""
    for line in lines:
        record.append(line)
        yield line


def _parquet_rows(file: Path, fields: Sequence[str]) -> Iterator[Row]:
    """The given columns of a .parquet file. Raises UsageError without pyarrow, and for what is not Parquet."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError(f"{file}: .parquet files need the package pyarrow: pip install pyarrow") from None
    reject_lfs_pointer(file)
    number = 0
    try:
        with parquet.ParquetFile(file) as opened:
            columns = opened.schema_arrow.names
            for field in fields:
                if field not in columns:
                    raise missing_field(file, field, columns)
                if columns.count(field) > 1:
                    raise UsageError(f"{file} has the column {field!r} twice")
            for batch in opened.iter_batches(columns=list(fields)):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}, row {number:,}", row
    except UsageError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as Parquet: {str(error).splitlines()[0]}") from None


READERS: dict[str, Callable[[Path, Sequence[str]], Iterator[Row]]] = {
    **dict.fromkeys(JSON, _json_rows),
    **dict.fromkeys(CSV, _table_rows),
    **dict.fromkeys(PARQUET, _parquet_rows),
}
