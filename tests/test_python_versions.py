"""The oldest Python that pyproject.toml promises has what `bbt` and `backends` import from the standard library."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OLDEST = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]


def imports(node):
    """Every import below a node as a line of its own, but for those under a condition or a `try`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If | ast.Try):
            continue
        if isinstance(child, ast.Import):
            yield from (f"import {name.name}" for name in child.names)
        elif isinstance(child, ast.ImportFrom) and not child.level:
            yield from (f"from {child.module} import {name.name}" for name in child.names)
        yield from imports(child)


def standard_imports():
    files = [*ROOT.glob("bbt/**/*.py"), *ROOT.glob("backends/**/*.py")]
    lines = {line for file in files for line in imports(ast.parse(file.read_text(encoding="utf-8")))}
    return sorted(line for line in lines if line.split()[1].split(".")[0] in sys.stdlib_module_names)


def test_every_standard_import_is_in_the_oldest_python():
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    python = sys.executable if running == OLDEST else shutil.which(f"python{OLDEST}")
    if python is None or subprocess.run([python, "--version"], capture_output=True).returncode:
        pytest.skip(f"no Python {OLDEST} here")
    lines = standard_imports()
    assert "from collections.abc import Iterator" in lines
    said = subprocess.run([python, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
