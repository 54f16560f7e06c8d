"""A user's type checker sees our types: mypy, run as a user runs it, on code that uses bbt as an installed package."""

import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

CONSUMER = """\
import bbt
from bbt import PromptClassifier, SoftPrompt

outcome = bbt.tune({"task": {"name": "sst2"}}, budget=200)
reveal_type(outcome)
reveal_type(bbt.Predictor("runs/sst2").predict_proba(["a text"]))
reveal_type(PromptClassifier(budget=100).fit(["a"], ["b"]))
reveal_type(SoftPrompt.load("prompt.safetensors").embeddings)
bbt.tune(budget="many")
"""
SETTINGS = "[mypy]\nstrict = true\n[mypy-torch.*,transformers.*]\nfollow_imports = skip\n"


@pytest.fixture
def users_python(tmp_path):
    """An environment that has what ours has, and the two packages as an installation puts them."""
    venv.create(tmp_path / "venv", with_pip=False)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    for package in ("bbt", "backends"):
        (site / package).symlink_to(ROOT / package, target_is_directory=True)
    (site / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return tmp_path / "venv/bin/python"


def test_mypy_knows_what_a_user_gets(users_python, tmp_path):
    (tmp_path / "consumer.py").write_text(CONSUMER)
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    command = [sys.executable, "-m", "mypy", "--python-executable", str(users_python), "consumer.py"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600).stdout
    revealed = re.findall(r'Revealed type is "([^"]+)"', said)
    assert [kind.split("[")[0] for kind in revealed] == [
        "bbt.api.Outcome",
        "numpy.ndarray",
        "bbt.estimator.PromptClassifier",
        "numpy.ndarray",
    ], said
    errors = [line for line in said.splitlines() if ": error: " in line]
    assert len(errors) == 1, said
    assert re.search(r'^consumer\.py:9: error: Argument "budget" to "tune" has incompatible type "str"', errors[0])


@pytest.mark.parametrize("package", ["bbt", "backends"])
def test_the_marker_is_in_the_wheel(package):
    packaged = re.search(rf"^{package} = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert '"py.typed"' in packaged
    assert (ROOT / package / "py.typed").is_file()
