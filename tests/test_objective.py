import numpy as np
import pytest
from toy import TASK, toy_scorer

from bbt.scoring.judge import Judge, Verdict
from bbt.scoring.ledger import Ledger
from bbt.scoring.losses import cross_entropy
from bbt.scoring.objective import Objective
from bbt.scoring.scorer import Scorer
from bbt.tasks import Example
from bbt.testing import ToyBackend
from bbt.testing.toy import HIDDEN

TOKENS = 3


def prompts_at(*values):
    """Prompts (n, T, H) filled with one number each: at distance T * H * (value - 1)^2 from the toy's target."""
    return np.array([np.full((TOKENS, HIDDEN), value) for value in values], np.float32)


def test_losses_are_the_loss_of_the_backends_scores():
    backend, ledger = ToyBackend(), Ledger()
    scorer = toy_scorer(backend, [1.0, 2.0], ledger)
    losses = Objective(scorer, cross_entropy, ledger).losses(prompts_at(1.0, 1.5))
    # at the target label 1 scores its difficulty; at 1.5 it scores 12 * 0.25 = 3 less; label 0 scores 0
    expected = [np.mean(np.log1p(np.exp([-1.0, -2.0]))), np.mean(np.log1p(np.exp([2.0, 1.0])))]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_a_broken_candidate_costs_a_query_and_is_infinitely_bad():
    backend, ledger = ToyBackend(breaks_above=4.0), Ledger()
    objective = Objective(toy_scorer(backend, [1.0], ledger), cross_entropy, ledger)
    losses = objective.losses(prompts_at(5.0, 1.0))
    assert losses[0] == np.inf
    assert np.isfinite(losses[1])
    assert ledger.train_queries == 2


def test_the_ledger_counts_queries_examples_and_bytes():
    backend, ledger = ToyBackend(), Ledger()
    train, dev = toy_scorer(backend, [1, 2, 3, 4, 5], ledger), toy_scorer(backend, [1, 2], ledger)
    Objective(train, cross_entropy, ledger).losses(prompts_at(0, 1, 2, 3))
    Judge(dev, TASK, ledger).verdicts(prompts_at(0, 1, 2))
    counts = ledger.snapshot()
    assert (counts["train_queries"], counts["dev_queries"]) == (4, 3)
    assert counts["examples"] == 4 * 5 + 3 * 2
    assert counts["bytes_up"] == (4 + 3) * TOKENS * HIDDEN * 4
    assert counts["bytes_down"] == (4 * 5 + 3 * 2) * 2 * 4
    assert counts["backend_seconds"] > 0


def test_a_ledger_is_restored_to_its_snapshot():
    ledger, other = Ledger(train_queries=3, seconds=1.5), Ledger(dev_queries=9)
    other.restore(ledger.snapshot())
    assert other == ledger


def test_rows_are_encoded_once_for_each_prompt_length():
    class Counting(ToyBackend):
        encoded: tuple[int, ...] = ()

        def encode(self, rows, label_words, anchor=None):
            rows = super().encode(rows, label_words, anchor)
            self.encoded += (rows.n_prompt_tokens,)
            return rows

    backend = Counting()
    scorer = Scorer(backend, TASK, [Example("1", 1)], Ledger())
    for tokens in (3, 3, 0, 3, 0):
        scorer.scores(np.zeros((2, tokens, HIDDEN), np.float32))
    assert backend.encoded == (3, 0)


def test_verdicts_are_the_metric_and_the_cross_entropy():
    judge = Judge(toy_scorer(ToyBackend(), [1.0, 2.0, 4.0], Ledger()), TASK, Ledger())
    (verdict,) = judge.verdicts(prompts_at(1.5))  # distance 3: the last of three is right
    assert verdict.metric == pytest.approx(1 / 3)
    assert verdict.loss == pytest.approx(np.mean(np.log1p(np.exp([2.0, 1.0, -1.0]))), rel=1e-6)


def test_a_broken_prompt_gets_the_worst_verdict_even_if_its_argmax_is_right():
    examples = [Example("1", 0)] * 4  # NaN scores have argmax 0: by itself that would be all right
    judge = Judge(Scorer(ToyBackend(breaks_above=4.0), TASK, examples, Ledger()), TASK, Ledger())
    broken, wrong = judge.verdicts(prompts_at(5.0, 1.0))
    assert (broken.metric, broken.loss) == (0.0, np.inf)
    assert wrong.better_than(broken, "metric")
    assert wrong.better_than(broken, "loss")


@pytest.mark.parametrize(
    ("mine", "theirs", "by_metric", "by_loss"),
    [
        (Verdict(0.9, 0.5), Verdict(0.8, 0.1), True, False),
        (Verdict(0.8, 0.1), Verdict(0.8, 0.2), True, True),
        (Verdict(0.8, 0.2), Verdict(0.8, 0.2), False, False),
        (Verdict(0.7, 0.1), Verdict(0.8, 0.2), False, True),
    ],
)
def test_better_is_by_metric_with_ties_broken_by_loss_or_by_loss_alone(mine, theirs, by_metric, by_loss):
    assert mine.better_than(theirs, "metric") is by_metric
    assert mine.better_than(theirs, "loss") is by_loss
