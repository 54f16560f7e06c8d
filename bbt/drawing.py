"""Figures for files are drawn by matplotlib without a window."""

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def import_matplotlib() -> None:
    """Import matplotlib where that has not been done, whatever `MPLBACKEND` names: a notebook's kernel exports its own
    backend, and matplotlib refuses to be imported in an environment where that is not installed. Nothing here needs a
    backend for windows."""
    try:
        import matplotlib
    except ValueError:
        named = os.environ.pop("MPLBACKEND")
        for part in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
            del sys.modules[part]  # the failed import has left these behind
        try:
            import matplotlib  # noqa: F401
        finally:
            os.environ["MPLBACKEND"] = named


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, `width` by `height` in inches, that no window shows."""
    import_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
