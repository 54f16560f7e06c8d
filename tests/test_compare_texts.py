"""A comparison on a task whose answer is a text: metrics, perplexity, tokens, and what was written."""

import json
from statistics import mean, stdev

import pytest
from test_generation import QUESTIONS, TEMPLATE

from bbt.api import run
from bbt.compare.comparison import Comparison
from bbt.compare.costs import COSTS, cost_tables, records
from bbt.compare.finished import factor, finished
from bbt.compare.page import page
from bbt.compare.plan import Plan, cells
from bbt.compare.report import Report
from bbt.compare.samples import sample_tables
from bbt.compare.scores import score_table
from bbt.compare.significance import pair_in_words, paired_tables
from bbt.config import validated

pytestmark = pytest.mark.filterwarnings("ignore:the parts of the data overlap")


@pytest.fixture(scope="module")
def compared(tiny_folder, tmp_path_factory):
    """A plan of three methods and two seeds, all of it run."""
    runs = tmp_path_factory.mktemp("runs")
    (runs / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    file = str(runs / "rows.jsonl")
    columns = {"source": "story", "source_pair": "asks", "target": "said"}
    tree = {
        "base": {
            "model": {"name": str(tiny_folder("gpt2")), "options": {"precision": "fp32", "device": "cpu"}},
            "data": {"source": "files", "k": 2, "train": file, "test": file, "columns": columns},
            "prompt": {"n_prompt_tokens": 2, "intrinsic_dim": 4, "init": "text", "text": "a film"},
            "evaluation": {"rows": 4, "references": False, "also_test": {"others": file}},
        },
        "tasks": {
            "asked": {"task": {"name": "asked", "template": TEMPLATE, "decoding": {"max_new_tokens": 3}}},
        },
        "methods": {
            "no-prompt": {"method": {"name": "manual"}},
            "black-box": {"method": {"name": "black-box"}, "budget": {"queries": 24}},
            "lora": {"method": {"name": "lora", "steps": 2, "learning_rate": 0.1}},
        },
        "seeds": [0, 1],
    }
    plan = validated(Plan, tree)
    todo = cells(plan)
    for cell in todo:
        run(cell.config, runs / cell.task)
    return Comparison(plan, todo, finished(todo, runs)), runs


def test_perplexity_is_a_column_of_its_own_and_no_percent(compared):
    comparison, _ = compared
    assert comparison.columns == [
        ("asked", "token_f1"),
        ("asked", "perplexity"),
        ("asked → others", "token_f1"),
        ("asked → others", "perplexity"),
    ]
    table = score_table(comparison)
    assert "perplexity as it is" in table.title
    for row, (label, runs) in zip(table.rows, comparison.rows.items(), strict=True):
        for place, column in ((2, ("asked", "perplexity")), (1, ("asked", "token_f1"))):
            values = [factor(column[1]) * one.scores[column] for one in runs]
            assert row[place] == f"{mean(values):.2f} ± {stdev(values):.2f}", label
    by_perplexity = [one.result["perplexity"]["tuned"] for one in comparison.rows["lora"]]
    assert [one.scores["asked", "perplexity"] for one in comparison.rows["lora"]] == by_perplexity
    assert "k = 2 rows" in table.notes[1]


def test_differences_of_perplexity_are_in_its_own_unit(compared):
    comparison, _ = compared
    plain, tuned = (comparison.scores(label, ("asked", "perplexity")) for label in ("no-prompt", "lora"))
    expected = mean(tuned[seed] - plain[seed] for seed in (0, 1))
    (against,) = paired_tables(comparison)
    row = next(row for row in against.rows if row[0] == "lora - no-prompt")
    assert row[2].startswith(f"{expected:+.2f} (p = ")
    said = [line for line in pair_in_words(comparison, "lora", "no-prompt") if line.startswith("asked perplexity")]
    assert f"{abs(expected):.2f} points {'above' if expected > 0 else 'below'}" in said[0]


def test_tokens_are_counted_for_every_method(compared):
    comparison, _ = compared
    (table,) = [table for table in cost_tables(comparison) if table.title == "Cost on asked"]
    place = 1 + list(COSTS).index("tokens")
    counts = {row[0]: int(row[place].replace(",", "")) for row in table.rows}
    assert 0 < counts["no-prompt"] < counts["lora"] < counts["black-box"]
    assert all(record["tokens"] > 0 and record["asked perplexity"] > 1 for record in records(comparison))


def test_what_was_written_stands_beside_the_references_on_the_page(compared, monkeypatch):
    comparison, runs = compared
    (table,) = sample_tables(comparison, runs)
    assert [row[0] for row in table.rows] == ["source ends in", "reference", "no-prompt", "black-box", "lora"]
    lines = (runs / "asked" / "lora-seed0" / "outputs.jsonl").read_text().splitlines()
    outputs = [json.loads(line) for line in lines[:3]]
    assert table.rows[1][1:] == tuple(one["references"][0] for one in outputs)
    assert table.rows[-1][1:] == tuple(" ".join(one["output"].split()) or "-" for one in outputs)
    assert all(cell.endswith("who is it ?") for cell in table.rows[0][1:])
    assert table.title in page("texts", comparison, [table], [], "")
    assert table.title in [one.title for one in Report(comparison.plan, runs).tables]
