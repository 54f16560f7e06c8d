"""Files that are never seen half written."""

from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that readers see the old content or the new one, and never a part of it. Half a surrogate
    pair, which no encoding has, becomes a question mark."""
    write_bytes_atomically(path, text.encode("utf-8", errors="replace"))


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write a file of bytes so that readers see the old content or the new one; it gets the mode that any new file
    has."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)
