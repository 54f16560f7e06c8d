"""Files that are never seen half written."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that readers see the old content or the new one, and never a part of it. Half a surrogate
    pair, which no encoding has, becomes a question mark."""
    write_bytes_atomically(path, text.encode("utf-8", errors="replace"))


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a jsonl file in the same way: one JSON object a record."""
    write_atomically(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write a file of bytes so that readers see the old content or the new one; it gets the mode that any new file
    has."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)
