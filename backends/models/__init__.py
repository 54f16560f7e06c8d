"""The models that ship with the package are found by name, without importing a model library."""

from pathlib import Path

_FOLDER = Path(__file__).parent


def bundled_models() -> dict[str, Path]:
    """The folders of the shipped models, by name."""
    return {folder.name: folder for folder in sorted(_FOLDER.iterdir()) if (folder / "config.json").is_file()}
