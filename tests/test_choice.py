"""Why a run has kept what it has kept, and the picture that marks it."""

import io

import numpy as np
import pytest

import bbt
from bbt.drawing import svg_text
from bbt.runs.choice import Choice
from bbt.runs.convergence import convergence_figure, curve
from bbt.runs.log import EventLog
from bbt.scoring.judge import Verdict


def dev(spent, metric=0.0, **row_losses):
    """A dev check of states by name, each with its losses on the dev rows."""
    names, rows = list(row_losses), [tuple(losses) for losses in row_losses.values()]
    facts = {"metrics": [metric] * len(rows), "losses": [float(np.mean(row)) for row in rows], "row_losses": rows}
    return {"event": "dev", "names": names, **facts, "ledger": {"train_queries": spent}}


def start(**selection):
    return {"event": "start", "settings": {"selection": {"by": "loss", "margin": 1.0, **selection}}}


def selected(who, spent, metric=0.5):
    return {"selected": {"who": who, "train_queries": spent, "metric": metric, "loss": 1.0}}


MANUAL = [1.0, 1.2, 0.8, 1.0]
EVENTS = [
    start(),
    dev(8, manual=MANUAL, untuned=[2.0, 2.0, 2.0, 2.0]),
    {"event": "generation", "losses": [3.0, None, 2.0], "ledger": {"train_queries": 11}},
    dev(11, 0.75, mean=[0.5, 0.7, 0.5, 0.5], best=[0.6, 0.9, 0.7, 0.9]),
    {"event": "generation", "losses": [2.5, 1.0, 4.0], "ledger": {"train_queries": 14}},
    dev(14, 0.75, mean=[0.7, 0.7, 0.7, 0.7]),
]


def test_a_chosen_candidate_is_told_with_its_lead_over_the_manual_prompt():
    gains = np.array(MANUAL) - [0.5, 0.7, 0.5, 0.5]
    lead = gains.mean() / (gains.std(ddof=1) / 2)
    assert Choice.of(EVENTS, selected("mean", 11)).why == (
        "Chosen: of 4 judged, mean (query 11) has the lowest dev loss, and is clearly better than the manual "
        f"prompt: loss 0.550 against 1.000, {lead:.1f} standard errors ahead, where it takes more than 1."
    )


def test_the_manual_prompt_stays_by_a_reason():
    choice = Choice.of([start(), EVENTS[1], dev(11, mean=[0.8, 1.1, 1.0, 0.9])], selected("manual", 8))
    assert choice.why.startswith(
        "The manual prompt stays: of 2 judged, mean (query 11) has the lowest dev loss, and is"
    )
    assert "not clearly better: loss 0.950 against 1.000, 0.6 standard errors ahead" in choice.why
    behind = Choice.of([start(), EVENTS[1]], selected("manual", 8))
    assert behind.why.endswith("is not clearly better: loss 2.000 against 1.000.")


def test_by_the_metric_the_lead_is_in_percent():
    events = [start(by="metric"), dev(0, 0.5, manual=MANUAL), dev(5, 0.75, mean=MANUAL)]
    assert "has the highest dev metric, and" in (why := Choice.of(events, selected("mean", 5)).why)
    assert "metric 75.0 against 50.0, 1.0 standard errors ahead" in why  # sqrt(0.5 * 0.5 / 4) is a quarter


def test_nothing_is_claimed_that_the_log_does_not_tell():
    assert Choice.of([], selected("mean", 5)).why == ""
    assert (
        Choice.of([start(), dev(0, manual=MANUAL)], selected("manual", 0)).why == "Only the manual prompt was judged."
    )
    ensemble = [start(), dev(1, member=[0.1]), dev(2, ensemble=[0.2])]
    assert Choice.of(ensemble, selected("ensemble", 2)).why == ""


@pytest.mark.parametrize("target", [0.05, 1.0])
def test_the_reason_is_that_of_the_run_itself(target):
    """What the log tells is what the search has decided: its best, and whether that is clearly better."""
    tree = {
        "task": {"name": "sst2"},
        "model": {"backend": "bbt.testing:ToyBackend", "name": "toy", "options": {"target": target, "manual": 0.3}},
        "budget": {"queries": 120, "dev_every": 20},
        "evaluation": {"rows": 0},
    }
    log = EventLog()
    outcome = bbt.tune(tree, observer=Keep(log), progress=False)
    choice = Choice.of(log.events, outcome.result)
    best, manual = choice.best, choice.manual
    clearly = best.verdict.clearly_better_than(manual.verdict, choice.by, choice.margin, 32)
    assert choice.who == (best.who if clearly else "manual")
    assert choice.why.startswith("The manual prompt stays" if not clearly else "Chosen: of ")


class Keep(bbt.Observer):
    def __init__(self, log):
        self.log = log

    def recorded(self, event):
        self.log.events.append(event)


def test_the_lead_is_the_mean_gain_and_its_standard_error():
    a, b = Verdict(0.5, 0.5, row_losses=(0.4, 0.6, 0.5)), Verdict(0.5, 0.8, row_losses=(0.9, 0.7, 0.8))
    gains = np.array([0.5, 0.1, 0.3])
    lead, error = a.lead(b, "loss", 3)
    assert (lead, error) == pytest.approx((gains.mean(), gains.std(ddof=1) / np.sqrt(3)))
    assert a.clearly_better_than(b, "loss", lead / error - 0.01, 3)
    assert not a.clearly_better_than(b, "loss", lead / error + 0.01, 3)


def test_the_curve_numbers_queries_and_leaves_broken_candidates_out():
    queries, losses, best = curve(EVENTS)
    assert queries == [9, 11, 12, 13, 14]  # eight queries went to screening
    assert losses == [3.0, 2.0, 2.5, 1.0, 4.0]
    np.testing.assert_array_equal(best, np.minimum.accumulate(losses))


@pytest.mark.parametrize("n_events", range(len(EVENTS) + 1))
def test_the_picture_of_any_log_marks_what_was_chosen(n_events):
    figure = convergence_figure(EVENTS[:n_events], selected("mean", 11, 0.75), "title")
    png = io.BytesIO()
    figure.savefig(png, format="png")
    assert png.getvalue()[:8] == b"\x89PNG\r\n\x1a\n"
    by = "loss" if n_events else "metric"  # what the log's first event says
    lines = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    star = lines[f"chosen by dev {by}: mean, 75.0 %"]
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (11, 75.0)
    if n_events > 1:
        manual = lines["manual prompt on dev, 0.0 %"]
        assert set(manual.get_ydata()) == {0.0}


def test_the_picture_says_why_unless_the_page_around_it_does():
    def words(**options):
        return svg_text(convergence_figure(EVENTS, selected("mean", 11), "title", **options))

    assert "Chosen: of 4 judged, mean" in words()
    assert "Chosen: of 4 judged, mean" not in words(reason=False)
