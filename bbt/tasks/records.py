"""Records of csv, tsv, jsonl and parquet files, read one at a time; text files may be packed as .gz.

A record is a dict from column to value in the file's order; a blank line is None, so that a reader may keep its place.
Each comes with its place, `file:line` (`file:row n` for parquet), by which errors name it.
"""

import codecs
import csv
import gzip
import io
import json
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from bbt.errors import DataError

Record = dict[str, Any]
Placed = tuple[str, Record | None]

FORMATS = (".jsonl", ".csv", ".tsv", ".jsonl.gz", ".csv.gz", ".tsv.gz", ".parquet")
LONGEST_CELL = 2**31 - 1  # characters; the csv module's own limit, 131,072, is below a long document

OTHER_DELIMITERS = (";", "\t", "|", ",")
"""What separates cells in files that are called csv or tsv all the same."""


def read_records(path: Path | str, header: bool = True) -> Iterator[Placed]:
    """All records of a file with their places. Without a `header` the columns of a csv or tsv are called 1, 2, 3, ...
    from the left.

    Raises:
        DataError: no such file, another format, text that is not UTF-8, or a line that does not hold a record; names
            file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no data file {path}.")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] == [".gz"]
    suffix = "".join(suffixes[-2:] if packed else suffixes[-1:])
    if suffix not in FORMATS:
        raise DataError(
            f"{path}: format {suffix!r} is not known. Give a .jsonl, .csv or .tsv file (each also packed as .gz), or "
            "a .parquet file."
        )
    suffix = suffix.removesuffix(".gz")
    if suffix == ".parquet":
        return _parquet_records(path)
    return _text_records(path, suffix, header)


def json_record(line: str, where: str) -> Record:
    """One line of a jsonl file.

    Raises:
        DataError: not a JSON object, or one that names a key twice.
    """
    try:
        record = json.loads(line, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of brackets, too
        raise DataError(f"{where}: not JSON: {error}.") from error
    except KeyError as error:
        raise DataError(f"{where}: the key {error} stands twice in one object.") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(record).__name__}.")
    return record


def _object(pairs: list[tuple[str, Any]]) -> Record:
    """A JSON object; its keys differ, or which value counts would be chance."""
    repeated = _repeated(key for key, _ in pairs)
    if repeated is not None:
        raise KeyError(repeated)
    return dict(pairs)


def _repeated(names: Iterable[str]) -> str | None:
    """The first name that stands twice, if one does."""
    return next((name for name, times in Counter(names).items() if times > 1), None)


def _text_records(path: Path, suffix: str, header: bool) -> Iterator[Placed]:
    try:
        if suffix == ".jsonl":
            for number, line in enumerate(_lines(path), start=1):
                where = f"{path}:{number}"
                yield where, json_record(line, where) if line.strip() else None
        else:
            csv.field_size_limit(max(csv.field_size_limit(), LONGEST_CELL))
            quoting = _quoting(path) if suffix == ".tsv" else csv.QUOTE_MINIMAL
            yield from _table_records(path, "\t" if suffix == ".tsv" else ",", quoting, header)
    except UnicodeDecodeError as error:
        raise DataError(_not_utf8(path)) from error
    except csv.Error as error:
        raise DataError(f"{path} is not a table: {error}.") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is not a whole .gz file: {error}.") from error


def _table_records(path: Path, delimiter: str, quoting: Any, header: bool) -> Iterator[Placed]:
    """The rows of a csv or tsv, under its header's names or under numbers."""
    reader = csv.reader(_lines(path), delimiter=delimiter, quoting=quoting, strict=quoting != csv.QUOTE_NONE)
    columns: list[str] = []
    for fields in reader:
        where = f"{path}:{reader.line_num}"
        if not fields:
            if columns:
                yield where, None
            continue
        if not columns:
            columns = (
                [name.strip() for name in fields] if header else [str(number) for number in range(1, len(fields) + 1)]
            )
            if len(columns) == 1 and (other := next((mark for mark in OTHER_DELIMITERS if mark in columns[0]), None)):
                raise DataError(
                    f"{where}: the first line is one cell, {columns[0]!r}. Cells are separated by {delimiter!r} in a "
                    f"{'.tsv' if delimiter == chr(9) else '.csv'} file, by {other!r} here it seems: save it with the "
                    "other separator, or as .jsonl."
                )
            repeated = _repeated(columns)
            if repeated is not None:
                raise DataError(
                    f"{where}: the header names column {repeated!r} twice. If this line is a row already, set "
                    "data.header: false."
                )
            if header:
                continue
        if len(fields) > len(columns):
            raise DataError(f"{where}: {len(fields)} fields, more than the {len(columns)} columns of the first line.")
        yield where, dict(zip(columns, [*fields, *[None] * (len(columns) - len(fields))], strict=True))


def _quoting(path: Path) -> int:
    """How a tsv's quotes are meant. Where they do not match up, as in GLUE's files, a quote is text."""
    broken, first = 0, 0
    reader = csv.reader(_lines(path), delimiter="\t", strict=True)
    try:
        for fields in reader:
            if any("\n" in field or "\r" in field for field in fields):
                broken, first = broken + 1, first or reader.line_num
    except csv.Error:
        return csv.QUOTE_NONE
    if broken:
        warnings.warn(
            f"{path}: {broken} rows have a line break inside a cell, the first one ends in line {first}. If quotes are "
            "plain text in this file, rows have been swallowed: give it as .jsonl, or double the quotes.",
            stacklevel=2,
        )
    return csv.QUOTE_MINIMAL


def _lines(path: Path) -> Iterator[str]:
    """The file's lines with their ends, without the byte-order mark that spreadsheets put first."""
    with _opened(path) as handle, io.TextIOWrapper(handle, encoding="utf-8-sig", newline="") as text:
        for number, line in enumerate(text, start=1):
            if "\0" in line:
                wide = "UTF-32" if "\0\0\0" in line else "UTF-16"
                raise DataError(f"{path}:{number}: holds a NUL character: {_convert(path, wide)}")
            yield line


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _not_utf8(path: Path) -> str:
    """The sentence for a file in another encoding: its first faulty line, and what it probably is."""
    from charset_normalizer import from_bytes

    seen, number, byte = b"", 0, 0
    with _opened(path) as handle:
        for line in handle:
            number, seen = number + 1, seen[-10_000:] + line
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                byte = line[error.start]
                break
    best = from_bytes(seen).best()
    guess = best.encoding if best else "WINDOWS-1252"
    if number == 1 and seen.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        guess = "UTF-32"
    elif number == 1 and seen.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        guess = "UTF-16"
    return f"{path}:{number} is not UTF-8 text (byte 0x{byte:02x}): {_convert(path, guess)}"


def _convert(path: Path, encoding: str) -> str:
    name = encoding.upper().replace("_", "-")
    command = f"iconv -f {name} -t UTF-8 {path.name} > utf8-{path.name}"
    return f"it looks like {name}. Convert the file to UTF-8, e.g. {command}"


def _parquet_records(path: Path) -> Iterator[Placed]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DataError(
            f"{path}: parquet files need the package pyarrow: pip install 'bbt-prompt[parquet]'."
        ) from error
    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path}:row {number}", record
    except (ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a readable parquet file: {error}") from error
