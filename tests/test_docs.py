"""What the documentation says is so: commands parse, configs are configs, and every part has its page. That links and
references lead somewhere is checked by `mkdocs build --strict`."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from backends import BACKENDS
from backends.serve.keys import Keys
from bbt.cli import app
from bbt.compare.plan import load_plan
from bbt.config import make_config
from bbt.methods import METHODS, load_method
from bbt.optimizers import OPTIMIZERS

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
TOLD = sorted([*PAGES, *ROOT.glob("configs/**/*.md"), *ROOT.glob("examples/**/*.md")])
COMMAND = typer.main.get_command(app)
WHAT_IS_MEANT = {"RUN": "runs/run", "CONFIG": "configs/quickstart.yaml", "PLAN": "examples/plans/table.yaml"}


def blocks(page, language):
    """The page's code blocks of a language, without what is included from elsewhere."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.S | re.M)


def commands():
    """(page, words) of every line of a console that begins with `bbt`."""
    for page in TOLD:
        for block in blocks(page, "(?:console|bash)"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["bbt"]:
                    yield pytest.param(words[1:], id=f"{page.relative_to(ROOT)}: {line.strip()[:60]}")


def named(table, page):
    """Which names of the table have no section or row on the pages that match."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob(page))
    return [name for name in table if f"`{name}`" not in text]


@pytest.mark.parametrize("words", list(commands()))
def test_a_command_goes_through_the_parser(words):
    with COMMAND.make_context("bbt", list(words)) as context:
        name, command, rest = COMMAND.resolve_command(context, words)
        command.make_context(name, [WHAT_IS_MEANT.get(word, word) for word in rest], parent=context).close()
    for word in words:
        if word.startswith(("configs/", "examples/")):
            assert (ROOT / word).is_file(), f"{word} is no file"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_block_of_yaml_is_a_config_a_plan_or_keys_and_one_of_python_is_python(page, tmp_path):
    for block in blocks(page, "yaml"):
        tree = {} if block.startswith("--8<--") else yaml.safe_load(block)
        if "methods" in tree:
            (tmp_path / "plan.yaml").write_text(block, encoding="utf-8")
            load_plan(tmp_path / "plan.yaml")
        elif tree and all(isinstance(value, dict) and "key" in value for value in tree.values()):
            (tmp_path / "keys.yaml").write_text(block, encoding="utf-8")
            assert len(Keys.read(tmp_path / "keys.yaml")) == len(tree)
        else:
            load_method(make_config(tree))
    for block in blocks(page, "python"):
        ast.parse(block)


def test_every_part_has_its_place():
    sections = re.findall(r"^#+ .*$", "\n".join(p.read_text() for p in ROOT.glob("docs/methods/*.md")), flags=re.M)
    names = [re.findall(r"`([^`]+)`", section) for section in sections]
    told = {found[0] for found in names if len(found) == 1}  # a page of several names them all in its title
    assert [name for name in (*METHODS, *OPTIMIZERS) if name not in told] == []
    assert named(METHODS, "docs/methods/index.md") == []
    assert named(BACKENDS, "docs/how-to/*.md") == []


def test_every_extra_is_in_the_table():
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text().split("optional-dependencies]")[1], re.M)
    assert "baselines" in extras
    told = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/install.md").read_text(), flags=re.M)
    assert sorted(told) == sorted(extras[: extras.index("dev") + 1])


def test_every_event_of_the_log_is_described():
    source = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("bbt/**/*.py"))
    kinds = {a or b for a, b in re.findall(r'"event": "(\w+)"|_append\("(\w+)"', source)}
    told = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/reference/formats.md").read_text(), flags=re.M))
    assert {"generation", "dev", "result"} < kinds
    assert kinds - told == set()


def test_the_readme_is_a_first_screen():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    (program, _) = blocks(ROOT / "README.md", "python")
    assert program in (ROOT / "examples/quickstart.py").read_text(encoding="utf-8"), "the program is the example"
    first, second = blocks(ROOT / "README.md", "bash")
    assert "bbt run configs/quickstart.yaml" in first
    assert second.endswith("&& pytest -n 2 --dist worksteal\n"), "CI runs the second block"
    for link in re.findall(r"\]\(([^)#:]+)[)#]", text):
        assert (ROOT / link).exists(), link
