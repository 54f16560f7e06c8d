"""Where two nested settings differ, said by name."""

from collections.abc import Mapping
from typing import Any


def first_difference(made: Any, wanted: Any, path: str = "", only_common: bool = False) -> str | None:
    """The first key at which two trees differ, with both values; None where they are equal. With `only_common`, keys
    count only if both trees have them: a setting that a later version has brought is no change of a run."""
    if made == wanted:
        return None
    if isinstance(made, Mapping) and isinstance(wanted, Mapping):
        keys = [key for key in made if key in wanted] if only_common else {**made, **wanted}
        pairs = ((key, first_difference(made.get(key), wanted.get(key), f"{path}.{key}", only_common)) for key in keys)
        return next((found for _, found in pairs if found), None)
    return f"{path.lstrip('.')} was {made!r}, is now {wanted!r}"
