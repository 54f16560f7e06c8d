"""Files that are never seen half written."""

from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that readers see the old content or the new one, and never a part of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
