"""What a comparison says, against hand computation, scipy, and parsers of its formats."""

import csv
import itertools
import math
import re
from collections import Counter
from html.parser import HTMLParser
from statistics import mean, stdev
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.stats import permutation_test, ttest_rel

from bbt.compare.comparison import Comparison
from bbt.compare.costs import as_csv, cost_tables, records
from bbt.compare.finished import Finished, Point
from bbt.compare.page import page
from bbt.compare.plan import Plan, cells
from bbt.compare.plots import X_AXES, cost_plot, mean_steps, shots_plot, spread_plot
from bbt.compare.published import published_table
from bbt.compare.scores import score_table, spread
from bbt.compare.significance import in_words, pair_in_words, paired, paired_tables
from bbt.compare.table import Table
from bbt.compare.validation import best, validation_table
from bbt.compare.work import Failure
from bbt.config import validated
from bbt.errors import ConfigError

TREE = {
    "tasks": {"films": {"task": {"name": "sst2"}}, "pairs": {"task": {"name": "mrpc"}, "seeds": [0]}},
    "seeds": [0, 1, 2],
    "budgets": [100],
    "methods": {"manual": {"method": {"name": "manual"}}, "cma": {"optimizer": {"name": "cma"}}},
    "published": True,
}
ACCURACY = {"manual": {0: 0.70, 1: 0.70, 2: 0.70}, "cma": {0: 0.75, 1: 0.72, 2: 0.78}}


def result(cell, metrics, also=None):
    searched = cell.budget or 0
    return {
        "model": "toy",
        "test_examples": 1000,
        "test_truncated": 3 if cell.task == "pairs" else 0,
        "test": {"tuned": metrics},
        "also_test": also or {},
        "n_parameters": searched // 2,
        "selected": {"metric": 0.5 + cell.seed / 10, "loss": 0.25},
        "peak_memory_mb": 100.0 + cell.seed,
        "cost": {
            "train_queries": searched,
            "dev_queries": 2,
            "examples": 32 * (searched + 2),
            "tokens_up": 900 * (searched + 2),
            "tokens_down": 32 * (searched + 2),
            "seconds": 10.0 * cell.seed,
            "optimizer_seconds": 1.0,
            "bytes_up": 1020 * (searched + 2),
            "bytes_down": 256 * (searched + 2),
        },
    }


def finish(cell):
    if cell.task == "pairs":
        return Finished(cell, result(cell, {"f1": 0.8, "accuracy": 0.6}), (Point(0, 0.5, 0.4),))
    also = {"yelp": {"accuracy": 0.9, "examples": 40}}
    curve = (Point(0, 0.1, 0.5), Point(cell.budget, 5.0, 0.6)) if cell.budget else ()
    return Finished(cell, result(cell, {"accuracy": ACCURACY[cell.method][cell.seed]}, also), curve)


def comparison(keep=lambda cell: True, **changes):
    plan = validated(Plan, {**TREE, **changes})
    planned = cells(plan)
    return Comparison(plan, planned, [finish(cell) for cell in planned if keep(cell)])


def cell_of(table, row, column):
    return dict(zip(table.head, next(r for r in table.rows if r[0] == row), strict=True))[column]


def test_scores_are_mean_and_sample_deviation_over_seeds_in_percent():
    table = score_table(comparison())
    assert table.head == ("method", "films accuracy", "films → yelp accuracy", "pairs f1", "pairs accuracy", "mean")
    values = [75.0, 72.0, 78.0]
    assert cell_of(table, "cma", "films accuracy") == f"{mean(values):.2f} ± {stdev(values):.2f}" == "75.00 ± 3.00"
    assert cell_of(table, "manual", "films accuracy") == "70.00 ± 0.00"
    assert cell_of(table, "cma", "films → yelp accuracy") == "90.00 ± 0.00"
    assert cell_of(table, "cma", "pairs f1") == "80.00"
    assert cell_of(table, "cma", "mean") == f"{(75.0 + 80.0) / 2:.2f}"


def test_what_has_not_finished_is_counted_or_left_empty():
    table = score_table(comparison(lambda cell: cell.method == "manual" or (cell.task, cell.seed) == ("films", 1)))
    assert cell_of(table, "cma", "films accuracy") == "72.00 (1 of 3 seeds)"
    assert cell_of(table, "cma", "pairs f1") == cell_of(table, "cma", "mean") == "-"
    assert spread([]) == "-"


def test_the_notes_say_rows_shots_seeds_budget_and_source():
    tasks = {**TREE["tasks"], "films": {"task": {"name": "sst2"}, "data": {"note": "the dev set"}}}
    notes = score_table(comparison(tasks=tasks)).notes
    assert "films: 1,000 test rows: the dev set; k = 16 a class; 3 seeds; a budget of 100 queries" in notes[1]
    assert notes[1].endswith("yelp: 40 rows")
    assert "1 seed;" in notes[2]
    assert notes[2].endswith("3 test rows cut to the model's length")


def test_costs_are_means_over_seeds_and_memory_the_most():
    table = cost_tables(comparison())[0]
    assert [cell_of(table, "cma", name) for name in table.head[1:]] == [
        "50",
        "100",
        "2",
        "95,064",
        "3,264",
        "11.0",
        "102",
        "1,020",
        "256",
    ]


def test_published_figures_stand_in_a_table_of_their_own_by_the_task_s_real_name():
    table = published_table(comparison())
    assert cell_of(table, "BBT", "films accuracy") == "89.56"
    assert cell_of(table, "BBTv2", "pairs f1") == "77.01"
    assert cell_of(table, "BBT", "pairs accuracy") == "-"
    assert "published" in table.title
    assert "2201.03514" in table.notes[0]


@pytest.mark.parametrize("n", [3, 5, 8])
def test_the_sign_flip_test_is_exact_and_the_t_test_is_scipy_s(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.02, 0.05, n), rng.normal(0.0, 0.05, n)
    test = paired(dict(enumerate(a)), dict(enumerate(b)))
    flips = np.array(list(itertools.product([1, -1], repeat=n)))
    means = (flips * (a - b)).mean(axis=1)
    expected = np.mean(np.abs(means) >= abs((a - b).mean()) - 1e-12)
    assert test.p == pytest.approx(expected)
    assert test.p >= test.least_p == 2 / 2**n
    assert test.p_t == pytest.approx(ttest_rel(a, b).pvalue)
    assert test.difference == pytest.approx((a - b).mean())


@pytest.mark.parametrize("n", [14, 20])
def test_the_sign_flip_test_stays_exact_where_scipy_samples(n):
    differences = np.round(np.random.default_rng(n).normal(0.02, 0.05, n), 2)  # figures of 100 rows: many ties
    test = paired(dict(enumerate(differences)), dict.fromkeys(range(n), 0.0))
    cents, counts = np.round(100 * differences).astype(int), {0: 1}
    for cent in cents.tolist():  # how many flips have each sum, in whole numbers
        counts = _flipped(counts, cent)
    far = sum(count for total, count in counts.items() if abs(total) >= abs(cents.sum()))
    assert test.exact
    assert test.p == far / 2**n
    assert "Exact sign-flip test" in in_words("a", "b", test)


def _flipped(counts, cent):
    """Sums of sign flips and how many have each, with another difference."""
    after = Counter()
    for total, count in counts.items():
        after[total + cent] += count
        after[total - cent] += count
    return after


def test_beyond_twenty_seeds_the_sign_flip_test_says_that_it_samples():
    differences = np.random.default_rng(1).normal(0.02, 0.05, 21)
    test = paired(dict(enumerate(differences)), dict.fromkeys(range(21), 0.0))
    exact = permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=20_000, rng=1).pvalue
    assert not test.exact
    assert test.p == pytest.approx(exact, abs=0.01)
    assert "Sampled (65,536 draws) sign-flip test" in in_words("a", "b", test)


def test_only_shared_seeds_are_paired():
    test = paired({0: 0.5, 1: 0.7, 9: 0.1}, {1: 0.6, 0: 0.6, 5: 0.9})
    assert (test.n, test.higher, test.lower) == (2, 1, 1)
    assert paired({0: 0.5, 1: 0.5}, {1: 0.5, 2: 0.5}) is None


def test_words_say_what_the_seeds_can_and_cannot_show():
    three = in_words("cma", "manual", paired({0: 0.75, 1: 0.72, 2: 0.78}, dict.fromkeys(range(3), 0.7)))
    assert three.startswith("cma is 5.00 points above manual on the mean of 3 seeds (higher on 3, lower on 0)")
    assert "p = 0.25; 3 seeds cannot give less than 0.25" in three
    better = {seed: 0.7 + 0.001 * seed for seed in range(1, 9)}
    eight = in_words("cma", "manual", paired(better, dict.fromkeys(range(1, 9), 0.7)))
    assert "p = 0.0078; a difference is shown at the 5 % level" in eight
    mixed = paired({seed: 0.7 + 0.01 * (-1) ** seed for seed in range(8)}, dict.fromkeys(range(8), 0.7))
    assert "no difference is shown" in in_words("cma", "manual", mixed)
    same = paired({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5})
    assert in_words("a", "b", same) == "a and b have the same figure on each of 2 seeds."
    assert math.isfinite(same.p)
    assert same.p_t is None


def test_every_method_is_tested_against_the_first_or_the_named_ones():
    (table,) = paired_tables(comparison())
    assert table.rows[0][:2] == ("cma - manual", "+5.00 (p = 0.25, n = 3)")
    assert table.head == ("difference", "films accuracy", "films → yelp accuracy")  # pairs has one seed
    (other,) = paired_tables(comparison(against=["cma"]))
    assert other.rows[0][:2] == ("manual - cma", "-5.00 (p = 0.25, n = 3)")
    lines = pair_in_words(comparison(), "cma", "manual")
    assert lines[0].startswith("films accuracy: cma is 5.00 points above manual")
    with pytest.raises(ConfigError, match=r"unknown method of the plan 'cna'\. Did you mean 'cma'\?"):
        pair_in_words(comparison(), "cna", "manual")


def test_a_row_of_which_nothing_can_be_tested_is_left_out():
    (table,) = paired_tables(comparison(lambda cell: cell.budget != 200 or cell.seed == 0, budgets=[100, 200]))
    assert [row[0] for row in table.rows] == ["cma at 100 - manual"]


def test_tasks_with_one_budget_each_share_a_row():
    tasks = {**TREE["tasks"], "pairs": {**TREE["tasks"]["pairs"], "budgets": [40]}}
    table = score_table(comparison(tasks=tasks))
    assert [row[0] for row in table.rows] == ["manual", "cma"]
    assert "a budget of 40 queries" in table.notes[2]


def test_different_budgets_are_not_paired():
    several = comparison(budgets=[100, 200])
    assert several.pairs("cma", "cma") == [("cma at 100", "cma at 100"), ("cma at 200", "cma at 200")]
    assert several.pairs("cma", "manual") == [("cma at 100", "manual"), ("cma at 200", "manual")]


NASTY = Table("50 % of a_b & more", ("method", "a|b"), (("x_1 {#}", "1 ± 2"), ("<b>\\y", "→")), ("a $note$",))


def test_markdown_has_a_row_of_cells_for_every_line():
    lines = [re.split(r"(?<!\\)\|", line) for line in NASTY.markdown().splitlines() if line.startswith("|")]
    assert [len(line) for line in lines] == [4, 4, 4, 4]
    assert lines[0][2].strip() == r"a\|b"


def test_latex_is_balanced_and_escaped():
    text = NASTY.latex()
    opened, closed = re.findall(r"\\begin\{(\w+)\}", text), re.findall(r"\\end\{(\w+)\}", text)
    assert opened == closed[::-1] == ["table", "tabular"]
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r" \\")]
    assert [len(re.findall(r"(?<!\\)&", row)) for row in rows] == [1, 1, 1]
    assert r"\begin{tabular}{lr}" in text
    assert r"\caption{50 \% of a\_b \& more}" in text
    assert not re.search(r"(?<!\\)[%#_]", text)
    assert r"\textbackslash{}y & $\rightarrow$" in text


def test_csv_holds_every_run_unrounded():
    rows = list(csv.DictReader(as_csv(records(comparison())).splitlines()))
    assert len(rows) == 8
    mine = [row for row in rows if (row["task"], row["method"]) == ("films", "cma")]
    assert [float(row["films accuracy"]) for row in mine] == [0.75, 0.72, 0.78]
    assert [row["budget"] for row in mine] == ["100"] * 3
    assert as_csv([]) == "\n"


class Parsed(HTMLParser):
    """Tags opened and not closed, cells a row, pictures, and what the page says."""

    def __init__(self, text):
        super().__init__()
        self.open, self.pictures, self.rows, self.text = [], 0, [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.pictures += tag == "svg"
        if tag == "tr":
            self.rows.append(0)
        if tag in ("td", "th"):
            self.rows[-1] += 1
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_one_file_with_tables_pictures_plan_and_failures():
    shown = comparison()
    tables = [score_table(shown), NASTY]
    failures = [Failure(shown.cells[0], "out of <memory>")]
    parsed = Parsed(page("title", shown, tables, failures, "seeds: [0]"))
    assert parsed.open == []
    assert set(parsed.rows) == {6, 2}
    assert parsed.pictures == 2 * (len(X_AXES) + 1)
    for wanted in ("out of <memory>", "seeds: [0]", "<b>\\y", "8 of 8 runs finished"):
        assert wanted in parsed.text


def test_pictures_name_every_method_and_are_the_same_each_time():
    shown = comparison()
    for draw in (lambda c: cost_plot(c, "films", "seconds"), lambda c: spread_plot(c, "films")):
        svg = draw(shown)
        assert draw(shown) == svg
        words = "".join(ElementTree.fromstring(svg).itertext())
        assert "cma" in words
        assert "manual" in words


def test_a_learning_curve_over_the_shots():
    tasks = {"films": {"task": {"name": "sst2"}}}
    shown = comparison(k=[4, 8], tasks=tasks)
    assert list(shown.rows) == ["manual, k = 4", "manual, k = 8", "cma, k = 4", "cma, k = 8"]
    assert "k = 4, 8 a class" in score_table(shown).notes[1]
    words = "".join(ElementTree.fromstring(shots_plot(shown, "films")).itertext())
    assert "learning curve" in words
    assert "cma at 100" in words


def test_step_curves_are_averaged_where_all_have_begun():
    x, y = mean_steps([[(0, 0.5), (10, 0.7)], [(4, 0.1), (10, 0.3), (20, 0.5)]])
    assert x.tolist() == [4, 10, 20]
    assert y.tolist() == pytest.approx([0.3, 0.5, 0.6])


def test_cross_validation_chooses_by_mean_dev_metric_then_loss():
    plan = validated(Plan, {**TREE, "tasks": {"films": {"task": {"name": "sst2"}}}, "seeds": [0]})
    planned = cells(plan, folds=2)
    verdicts = {("manual", 0): (0.6, 0.3), ("manual", 1): (0.8, 0.3), ("cma", 0): (0.7, 0.2), ("cma", 1): (0.7, 0.2)}

    def judged(cell):
        metric, loss = verdicts[cell.method, cell.fold]
        return Finished(cell, {**result(cell, {}), "selected": {"metric": metric, "loss": loss}}, ())

    done = Comparison(plan, planned, [judged(cell) for cell in planned])
    assert best(done, "films") == "cma"
    table = validation_table(done, 2)
    assert cell_of(table, "manual", "films dev") == "70.00 ± 14.14"
    assert table.rows[-1] == ("chosen", "cma")
    assert best(Comparison(plan, planned, done.finished[1:]), "films") is None
