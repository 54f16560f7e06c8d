"""Figures for files and pages are drawn by matplotlib without a window."""

import io
import os
import re
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


def png_bytes(figure: "Figure") -> bytes:
    """The figure as PNG."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    return picture.getvalue()


def svg_text(figure: "Figure") -> str:
    """The figure as SVG that is the same each time. It has no background, and what would be black has the color of the
    text around it, so that it goes with a light page and with a dark one."""
    import matplotlib as mpl

    text = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": "bbt", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata=nothing, transparent=True)
    drawn = text.getvalue().replace("#000000", "currentColor")
    return re.sub(r'<g id="[^"]*">', "<g>", drawn[drawn.index("<svg") :])  # several may stand in one page
