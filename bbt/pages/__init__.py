"""Reports as HTML pages, each one file that needs nothing else: no script, style or picture from elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup


def rendered(page: str, /, **values: Any) -> str:
    """The text of a page: one of the templates beside this file, filled in with the values. They are escaped, but for
    `picture`s."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = FileSystemLoader(Path(__file__).parent)
    pages = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return pages.get_template(page).render(**values)


def picture(svg: str) -> "Markup":
    """SVG of our own that goes into a page as it is."""
    from markupsafe import Markup

    return Markup(svg)
