"""What a run folder holds is carried from one machine to another as bytes."""

from pathlib import Path
from typing import TypeAlias

from bbt.files import write_bytes_atomically

Files: TypeAlias = dict[str, bytes]
"""The content of files, by their names in a run folder."""


def read_files(folder: Path) -> Files:
    """What a run folder holds; its lock is left out."""
    found = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != ".lock")
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in found}


def write_files(folder: Path, files: Files) -> None:
    """Write files into a run folder. The log comes last, so that nothing that it tells of is lacking."""
    for name in sorted(files, key=lambda name: name == "events.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomically(folder / name, files[name])
