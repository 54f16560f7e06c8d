import hashlib
import warnings

import numpy as np
import pytest
from toy import TASK, toy_scorer

from bbt.errors import ConfigError
from bbt.optimizers import Settings, make_optimizer
from bbt.runs.log import EventLog
from bbt.scoring.judge import Judge, Verdict
from bbt.scoring.ledger import Ledger
from bbt.scoring.losses import cross_entropy
from bbt.scoring.objective import Objective
from bbt.search.schedule import Schedule
from bbt.search.tuner import Candidate, Tuner, penalised
from bbt.spaces.soft import PromptSpace, random_projection
from bbt.testing import ToyBackend
from bbt.testing.toy import HIDDEN

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import cma

TOKENS, D = 2, 5
TRAIN, DEV = (1.0, 2.0, 3.0), (0.5, 1.0, 2.0, 4.0)
SPACE = PromptSpace(np.zeros((1, TOKENS, HIDDEN), np.float32), random_projection(0, TOKENS * HIDDEN, D, "normal", 0.5))


def squared_distance(scores, labels):
    """The toy's quadratic itself, as a training loss: with A linear it is a quadratic in z."""
    return (np.array(TRAIN) - scores[:, :, 1].astype(np.float64)).mean(axis=1)


def make_tuner(
    backend=None, log=None, loss=squared_distance, optimizer="cma", population=6, seed=5, space=SPACE, **schedule
):
    backend, ledger = backend or ToyBackend(), Ledger()
    settings = Settings(intrinsic_dim=D, population_size=population, seed=seed)
    return Tuner(
        make_optimizer(optimizer, settings),
        space,
        Objective(toy_scorer(backend, TRAIN, ledger), loss, ledger),
        Judge(toy_scorer(backend, DEV, ledger), TASK, ledger),
        ledger,
        log or EventLog(),
        Schedule(**{"budgets": (60,), "population_size": population, "dev_every": 20, **schedule}),
    )


def losses_of(log):
    return [loss for event in log.of("generation") for loss in event["losses"]]


def dev_names(log):
    return [event["names"] for event in log.of("dev")]


def test_the_trajectory_is_raw_pycmas():
    tuner = make_tuner(budgets=(120,))
    tuner.run()

    rule = cma.sigma_adaptation.CMAAdaptSigmaCSA
    raw = cma.CMAEvolutionStrategy([0.0] * D, 1.0, {"seed": 5, "popsize": 6, "AdaptSigma": rule, "verbose": -9})
    scorer, checksums, losses = toy_scorer(ToyBackend(), TRAIN, Ledger()), [], []
    for _ in range(20):
        latents = np.array(raw.ask())
        checksums.append(hashlib.sha256(latents.tobytes()).hexdigest()[:16])
        values = squared_distance(scorer.scores(SPACE.prompts(latents)), None)
        losses += values.tolist()
        raw.tell(list(latents), values.tolist())
    assert [event["candidates"] for event in tuner.log.of("generation")] == checksums
    assert losses_of(tuner.log) == losses
    assert losses[-1] < 0.6 * losses[0]  # and it searches


def test_the_budget_is_train_queries_with_dev_queries_apart():
    tuner = make_tuner(budgets=(60,), dev_every=20, n_best=2)
    tuner.run()
    assert tuner.ledger.train_queries == len(losses_of(tuner.log)) == 60
    checks = [event["ledger"]["train_queries"] for event in tuner.log.of("dev")]
    assert checks == [0, 24, 48, 60]  # every 20 queries, at the end of a generation of 6; and when the budget ends
    assert tuner.ledger.dev_queries == 2 + 3 * 3  # manual, untuned; mean and two by training loss


def test_the_ledger_counts_examples_and_bytes_exactly():
    tuner = make_tuner(budgets=(60,), dev_every=20, n_best=2)
    tuner.run()
    train, dev, manual = 60, 10, 1
    numbers = TOKENS * HIDDEN
    assert tuner.ledger.examples == train * len(TRAIN) + (dev + manual) * len(DEV)
    assert tuner.ledger.bytes_up == 4 * numbers * (train + dev)  # the manual prompt has no numbers
    assert tuner.ledger.bytes_down == 4 * 2 * (train * len(TRAIN) + (dev + manual) * len(DEV))


@pytest.mark.parametrize(("budget", "spent"), [(59, 40), (60, 60), (61, 60), (79, 60)])
def test_a_budget_is_a_ceiling_and_a_generation_is_never_cut(budget, spent):
    tuner = make_tuner(budgets=(budget,), population=20)
    tuner.run()
    assert tuner.ledger.train_queries == spent
    assert tuner.log.events[-1]["event"] == "dev"
    assert tuner.log.events[-1]["ledger"]["train_queries"] == spent, "dev judges where the budget ends"


def test_a_budget_that_a_generation_does_not_divide_is_extended_as_if_it_had_been_longer():
    def replayed(log, budgets):
        again = EventLog()
        again.events = list(log.events)
        again._to_recall.extend(again.events)
        return make_tuner(log=again, budgets=budgets, dev_every=6)

    short, whole = make_tuner(budgets=(63,), dev_every=6), make_tuner(budgets=(121,), dev_every=6)
    short.run()
    extended = replayed(short.log, (63, 121))
    assert extended.run().verdict == whole.run().verdict
    assert [e | {"ledger": None} for e in extended.log.events] == [e | {"ledger": None} for e in whole.log.events]
    assert extended.ledger.train_queries == 120


def test_a_run_that_an_earlier_version_let_exceed_its_budget_is_replayed_and_extended():
    old = make_tuner(budgets=(66,))  # as one of 63 queries ended that was spent by 66
    old.run()
    for budgets, spent in (((63,), 66), ((63, 90), 90)):
        log = EventLog()
        log.events = list(old.log.events)
        log._to_recall.extend(log.events)
        again = make_tuner(log=log, budgets=budgets)
        again.run()
        assert again.ledger.train_queries == spent
        assert losses_of(log)[:66] == losses_of(old.log)


def test_a_schedule_counts_what_a_search_does():
    schedule = {"budgets": (75,), "dev_every": 20, "n_best": 2}
    tuner = make_tuner(**schedule)
    tuner.run()
    plan = tuner.schedule.plan(0, references=True)
    assert (plan.train, plan.dev + plan.manual_dev) == (tuner.ledger.train_queries, tuner.ledger.dev_queries)
    with pytest.raises(ConfigError, match=r"budget.queries is 75, but screening 70 initial prompts .* need 76 queries"):
        tuner.schedule.plan(70, references=True)


def test_baselines_are_judged_first_and_can_win():
    tuner = make_tuner(backend=ToyBackend(manual=0.0), budgets=(12,))
    best = tuner.run()
    assert tuner.log.events[0]["names"] == ["manual", "untuned"]
    assert (best.who, best.prompt.shape, best.verdict.metric, best.train_queries) == ("manual", (0, HIDDEN), 1.0, 0)


@pytest.mark.parametrize(("manual", "tuned", "clearly"), [(0.5, 0.75, False), (0.5, 1.0, True), (1.0, 1.0, False)])
def test_the_manual_prompt_stays_unless_beaten_by_more_than_a_standard_error(manual, tuned, clearly):
    tuner = make_tuner()
    nobody = np.zeros((0, HIDDEN), np.float32)
    candidates = [Candidate("", nobody, Verdict(metric, 0.1), 0) for metric in (tuned, manual)]
    assert tuner._clearly_better(*candidates) == clearly  # 4 dev rows: a standard error is 0.25 at 0.5


def test_a_manual_prompt_that_is_clearly_beaten_goes():
    assert make_tuner(backend=ToyBackend(manual=5.0), budgets=(240,)).run().who not in ("manual", "untuned")


def test_the_untuned_prompt_wins_if_tuning_makes_it_worse():
    at_target = PromptSpace(np.ones((1, TOKENS, HIDDEN), np.float32), SPACE.matrix)
    best = make_tuner(space=at_target, optimizer="random", budgets=(12,)).run()
    assert best.who == "untuned"
    np.testing.assert_array_equal(best.prompt, at_target.p0[0])


def test_without_baselines_only_searched_candidates_are_judged():
    tuner = make_tuner(backend=ToyBackend(manual=0.0), baselines=False)
    best = tuner.run()
    assert best.who not in ("manual", "untuned")
    assert all("manual" not in names for names in dev_names(tuner.log))


def test_mean_and_best_training_candidates_are_judged_at_each_check():
    tuner = make_tuner(n_best=2)
    tuner.run()
    assert dev_names(tuner.log)[1:] == [["mean", "train best 1", "train best 2"]] * 3
    none = make_tuner(n_best=0)
    none.run()
    assert dev_names(none.log)[1:] == [["mean"]] * 3


def test_the_best_training_candidate_is_the_one_of_lowest_loss_since_the_last_check():
    tuner = make_tuner(optimizer="random", seed=3, n_best=1, dev_every=30, by="loss", baselines=False)
    best = tuner.run()
    # train and dev rank by the same distance here, so dev must find the lowest training loss of all
    lowest = min(losses_of(tuner.log))
    assert np.square(best.prompt - 1.0).sum() == pytest.approx(lowest, rel=1e-5)
    generations = tuner.log.of("generation")
    halves = [min(loss for event in part for loss in event["losses"]) for part in (generations[:5], generations[5:])]
    assert halves[0] < halves[1]  # the first must be forgotten
    for event, distance in zip(tuner.log.of("dev"), halves, strict=True):
        expected = np.mean(np.log1p(np.exp(distance - np.array(DEV))))
        assert event["losses"][1] == pytest.approx(expected, rel=1e-5)


def test_selection_is_by_metric_with_ties_broken_by_dev_loss():
    tuner = make_tuner(budgets=(240,), dev_every=6)
    best = tuner.run()
    pairs = [(m, -v) for e in tuner.log.of("dev") for m, v in zip(e["metrics"], e["losses"], strict=True)]
    assert (best.verdict.metric, -best.verdict.loss) == max(pairs)
    assert sum(metric == max(pairs)[0] for metric, _ in pairs) > 1  # there were ties to break


def test_selection_by_loss_takes_the_lowest_dev_loss():
    tuner = make_tuner(by="loss", budgets=(120,))
    best = tuner.run()
    assert best.verdict.loss == min(v for e in tuner.log.of("dev") for v in e["losses"])


def test_metric_and_loss_may_choose_differently():
    class Disagreeing(ToyBackend):
        """Metric: all right only untuned, but with tiny margins; loss: low where it is tuned."""

        def label_scores(self, prompts, encoded):
            scores = super().label_scores(prompts, encoded)
            if prompts.shape[1]:
                untuned = ~prompts.any(axis=(1, 2))
                scores[:, 0, 1] = np.where(untuned, 1e-3, -1e-3)
                scores[:, 1:, 1] = np.where(untuned, 1e-3, 10.0)[:, None]
            return scores

    assert make_tuner(backend=Disagreeing(), loss=cross_entropy, by="metric", budgets=(6,)).run().who == "untuned"
    assert make_tuner(backend=Disagreeing(), loss=cross_entropy, by="loss", budgets=(6,)).run().who == "mean"


def test_broken_candidates_are_never_selected_nor_do_they_stop_the_search():
    tuner = make_tuner(backend=ToyBackend(breaks_above=0.2), baselines=False, n_best=3)
    best = tuner.run()
    losses = losses_of(tuner.log)
    assert losses.count(None) > 5
    assert losses.count(None) < len(losses)
    assert best.prompt[0, 0] <= 0.2
    assert np.isfinite(best.verdict.loss)


def test_broken_candidates_are_not_even_judged():
    tuner = make_tuner(backend=ToyBackend(breaks_above=0.2), baselines=False, n_best=6, dev_every=6)
    tuner.run()
    for generation, check in zip(tuner.log.of("generation"), tuner.log.of("dev"), strict=True):
        assert len(check["names"]) == 1 + 6 - generation["losses"].count(None)
        assert None not in check["losses"][1:]


def test_the_optimizer_is_told_that_a_broken_candidate_is_worse_than_any_sound_one(monkeypatch):
    tuner, told = make_tuner(backend=ToyBackend(breaks_above=0.2)), []
    tell = tuner.optimizer.tell
    monkeypatch.setattr(tuner.optimizer, "tell", lambda latents, losses: (told.append(losses), tell(latents, losses)))
    tuner.run()
    for losses, event in zip(told, tuner.log.of("generation"), strict=True):
        broken = np.array([loss is None for loss in event["losses"]])
        assert np.isfinite(losses).all()
        assert broken.all() or not broken.any() or losses[broken].min() > losses[~broken].max()


def test_even_if_every_candidate_breaks_the_run_ends_with_the_untuned_or_manual_prompt():
    best = make_tuner(backend=ToyBackend(breaks_above=-np.inf)).run()
    assert best.who == "manual"  # p0 is broken too


def test_penalised_losses_are_finite():
    np.testing.assert_array_equal(penalised(np.array([1.0, np.inf, 3.0])), [1.0, 4.0, 3.0])
    np.testing.assert_array_equal(penalised(np.array([np.inf, np.inf])), [0.0, 0.0])


def test_patience_counts_checks_without_a_better_candidate():
    at_target = PromptSpace(np.ones((1, TOKENS, HIDDEN), np.float32), SPACE.matrix)
    tuner = make_tuner(space=at_target, optimizer="random", budgets=(600,), dev_every=12, patience=3)
    tuner.run()
    assert tuner.ledger.train_queries == 36  # the untuned prompt is perfect: three checks in vain
    patient = make_tuner(budgets=(120,), dev_every=12, patience=3, by="loss")
    patient.run()
    assert patient.ledger.train_queries == 120  # it keeps getting better


def test_a_replayed_run_asks_no_query_and_ends_the_same():
    first = make_tuner()
    best = first.run()
    log = EventLog()
    log.events = list(first.log.events)
    log._to_recall.extend(log.events)
    backend = ToyBackend()
    again = make_tuner(backend=backend, log=log)
    replayed = again.run()
    assert backend.n_calls == 0
    assert again.ledger == first.ledger
    assert (replayed.who, replayed.verdict, replayed.train_queries) == (best.who, best.verdict, best.train_queries)
    np.testing.assert_array_equal(replayed.prompt, best.prompt)


def test_an_extended_budget_goes_on_where_the_run_ended():
    short = make_tuner(budgets=(60,))
    short.run()
    log = EventLog()
    log.events = list(short.log.events)
    log._to_recall.extend(log.events)
    extended = make_tuner(log=log, budgets=(60, 120))
    extended.run()
    whole = make_tuner(budgets=(120,))
    whole.run()
    assert losses_of(extended.log) == losses_of(whole.log)
    assert extended.ledger.train_queries == 120


def test_progress_is_told_after_each_generation():
    seen = []
    tuner = make_tuner(budgets=(30,))
    tuner.on_progress = lambda progress: seen.append((progress.done, progress.train_loss))
    tuner.run()
    assert [queries for queries, _ in seen] == [6, 12, 18, 24, 30]
    assert [loss for _, loss in seen] == [min(event["losses"]) for event in tuner.log.of("generation")]


class CountedSpace(PromptSpace):
    """A prompt space that counts the products with A."""

    made = 0

    def prompts(self, latents):
        CountedSpace.made += 1
        return super().prompts(latents)


class Holding(ToyBackend):
    """A backend that holds the prompt space, to which z travels."""

    def latent_scores(self, latents, space, encoded):
        return self.label_scores(PromptSpace.prompts(space, latents), encoded)


def test_where_z_travels_prompts_are_made_for_a_better_candidate_alone():
    CountedSpace.made = 0
    tuner = make_tuner(Holding(), space=CountedSpace(SPACE.p0, SPACE.matrix), budgets=(240,), optimizer="random")
    best, n_better = tuner.run(), 0
    first = make_tuner(budgets=(240,), optimizer="random")
    expected = first.run()
    np.testing.assert_array_equal(best.prompt, expected.prompt)
    assert [event["losses"] for event in tuner.log.of("dev")] == [event["losses"] for event in first.log.of("dev")]
    lowest = (-1.0, -np.inf)
    for event in tuner.log.of("dev"):
        judged = [(m, -loss) for m, loss in zip(event["metrics"], event["losses"], strict=True)]
        if event["names"][0] != "manual":
            n_better += max(judged) > lowest
        lowest = max(lowest, *(judged[1:] if event["names"][0] == "manual" else judged))
    assert CountedSpace.made == n_better < len(tuner.log.of("dev"))
