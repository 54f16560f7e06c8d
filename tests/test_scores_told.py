"""What a search tells an optimizer that learns from label scores: which scores, as the log holds them, and when."""

import json
import shutil
import signal

import numpy as np
import pytest
from serving import serving
from test_resume import assert_same, n_events, settings, start, stop
from toy import TASK, toy_scorer

import bbt
from bbt.api import resume, run
from bbt.config import make_config
from bbt.errors import ConfigError, RunError
from bbt.optimizers import Settings
from bbt.optimizers.kernel_surrogate import KernelSurrogate
from bbt.runs.log import EventLog, decode_scores, encode_scores
from bbt.scoring.judge import Judge
from bbt.scoring.ledger import Ledger
from bbt.scoring.losses import cross_entropy
from bbt.scoring.many_words import WordsObjective
from bbt.scoring.objective import Objective
from bbt.scoring.readout import Strength
from bbt.scoring.scorer import Scorer
from bbt.search.schedule import Schedule
from bbt.search.tuner import Tuner
from bbt.spaces.soft import PromptSpace, random_projection
from bbt.tasks import Example
from bbt.testing import ToyBackend
from bbt.testing.toy import HIDDEN

D, POPULATION = 5, 6
ROWS = [Example(str(difficulty), label) for difficulty, label in ((1.0, 1), (2.0, 0), (3.0, 1), (0.5, 0))]
SPACE = PromptSpace(np.zeros((1, 2, HIDDEN), np.float32), random_projection(0, 2 * HIDDEN, D, "normal", 0.5))


class Tilted(ToyBackend):
    """The toy, whose prompts move some rows more than others: what class biases cannot take away."""

    def label_scores(self, prompts, encoded):
        return super().label_scores(prompts, encoded) * np.float32(encoded.difficulties)[None, :, None]


class Shifted(Tilted):
    """The same, with a number added to all scores of label 1."""

    def label_scores(self, prompts, encoded):
        return super().label_scores(prompts, encoded) + np.array([0.0, 4.0], np.float32)


class Listening(KernelSurrogate):
    """The optimizer, which keeps what it is told."""

    def __init__(self, settings):
        super().__init__(settings)
        self.told = []

    def tell_scores(self, latents, losses, scores, labels):
        self.told.append((latents, losses, scores, labels))
        super().tell_scores(latents, losses, scores, labels)


def make_tuner(backend=None, log=None, calibration="fitted", tells=True):
    backend, ledger = backend or ToyBackend(), Ledger()
    objective = Objective(Scorer(backend, TASK, ROWS, ledger), cross_entropy, ledger, calibration)
    return Tuner(
        Listening(Settings(D, POPULATION, seed=5)),
        SPACE,
        objective,
        Judge(toy_scorer(backend, (0.5, 2.0), ledger), TASK, ledger),
        ledger,
        log or EventLog(),
        Schedule((60,), POPULATION, 20),
        scored=objective if tells else None,
    )


def test_the_scores_told_are_those_of_which_the_losses_are_taken():
    tuner = make_tuner()
    tuner.run()
    assert len(tuner.optimizer.told) == 10
    for latents, losses, scores, labels in tuner.optimizer.told:
        assert scores.shape == (POPULATION, len(ROWS), 2)
        np.testing.assert_array_equal(labels, [1, 0, 1, 0])
        np.testing.assert_allclose(cross_entropy(scores, labels), losses, atol=2e-3)  # they are rounded
        np.testing.assert_allclose(scores.mean(axis=2), 0, atol=2e-3)
        np.testing.assert_allclose(tuner.objective.latent_losses(latents, SPACE), losses)


def test_a_constant_added_to_a_labels_scores_changes_no_candidate():
    ours, shifted = make_tuner(Tilted()), make_tuner(Shifted())
    ours.run()
    shifted.run()
    for mine, theirs in zip(ours.optimizer.told, shifted.optimizer.told, strict=True):
        np.testing.assert_allclose(mine[0], theirs[0], atol=0.02)  # a rounding may turn over
        np.testing.assert_allclose(mine[2], theirs[2], atol=0.02)
    np.testing.assert_allclose(ours.optimizer.mean, shifted.optimizer.mean, atol=0.02)


def test_an_optimizer_is_told_losses_where_no_scores_are_to_be_told():
    tuner = make_tuner(tells=False)
    tuner.run()
    assert tuner.optimizer.told == []
    assert all("scores" not in event for event in tuner.log.of("generation"))


def test_the_log_holds_scores_to_the_bit_and_broken_ones_stay_broken():
    scores = np.random.default_rng(0).normal(scale=5, size=(3, 4, 2))
    scores[1, 2, 0] = np.nan
    scores[2, 0] = (np.inf, 0.0)
    once = decode_scores(json.loads(json.dumps(encode_scores(scores))), 3, 4)
    np.testing.assert_array_equal(decode_scores(encode_scores(once), 3, 4)[0], once[0])
    np.testing.assert_allclose(once[0], scores[0] - scores[0].mean(axis=1, keepdims=True), rtol=1e-3)
    assert not np.isfinite(once[1]).all()
    assert not np.isfinite(once[2]).all()


def test_a_replay_without_a_query_tells_what_was_told(tmp_path):
    first = make_tuner(log=EventLog(tmp_path / "events.jsonl"))
    first.run()
    backend = ToyBackend()
    again = make_tuner(backend, EventLog(tmp_path / "events.jsonl"))
    again.run()
    assert backend.n_calls == 0
    for mine, theirs in zip(first.optimizer.told, again.optimizer.told, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(first.optimizer.mean, again.optimizer.mean)


def test_a_log_without_scores_cannot_be_replayed_by_an_optimizer_that_learns_from_them():
    tuner = make_tuner(tells=False)
    tuner.run()
    log = EventLog()
    log.events = tuner.log.events
    log._to_recall.extend(log.events)
    with pytest.raises(RunError, match="holds no label scores"):
        make_tuner(log=log).run()


def test_where_labels_are_read_from_words_the_scores_are_those_of_left_out_rows():
    ledger = Ledger()
    task = TASK.__class__("toy", TASK.template, ("no", "yes"), ("no", "yes"), words=("film", "plot"))
    scorer = Scorer(ToyBackend(), task, ROWS * 4, ledger)
    objective = WordsObjective(scorer, cross_entropy, ledger, 2, Strength(1.0, 2.0))
    latents = np.random.default_rng(0).standard_normal((3, D))
    losses, scores = objective.scored_latents(latents, SPACE)
    assert scores.shape == (3, 16, 2)
    np.testing.assert_array_equal(losses, cross_entropy(scores, objective.labels))
    np.testing.assert_array_equal(losses, objective.latent_losses(latents, SPACE))
    assert ledger.train_queries == 6


def learning(model, queries=45, **options):
    """A config whose optimizer learns from scores."""
    tree = settings(model, queries)
    tree["optimizer"]["name"] = "kernel-surrogate"
    return {**tree, "evaluation": {"rows": 20}, "model": {**tree["model"], **options}}


def test_a_killed_run_goes_on_bit_for_bit_and_a_torn_record_is_dropped(tiny_folder, tmp_path):
    tree = learning(tiny_folder("bert"))
    whole = run(make_config(tree), tmp_path / "whole").folder
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(tree))
    folder = tmp_path / "runs" / "run"
    stop(start("run", config, cwd=tmp_path), signal.SIGKILL, folder, 6, 0.01)
    assert n_events(folder) < n_events(whole)
    resume(folder)
    assert_same(folder, whole)

    events = (whole / "events.jsonl").read_bytes().splitlines(keepends=True)
    torn = tmp_path / "torn"
    shutil.copytree(whole, torn)
    (torn / "result.json").unlink()
    last = max(i for i, line in enumerate(events) if b'"scores"' in line)
    (torn / "events.jsonl").write_bytes(b"".join(events[:last]) + events[last][: len(events[last]) // 2])
    resume(torn)
    assert_same(torn, whole)


def test_a_run_through_a_server_is_told_what_the_local_one_is(tiny_folder, tiny_backend, tmp_path):
    model = tiny_folder("bert")
    local = bbt.tune(learning(model, 30))
    with serving(tiny_backend("bert")) as url:
        remote = bbt.tune(learning(model, 30, backend="http", options={"url": url}))
    assert remote.classifier.prompt.embeddings.tobytes() == local.classifier.prompt.embeddings.tobytes()
    assert remote.result["test"] == local.result["test"]


def test_it_must_be_told_of_its_whole_population(tiny_folder):
    tree = learning(tiny_folder("bert"))
    tree["optimizer"]["asynchronous"] = True
    with pytest.raises(ConfigError, match="KernelSurrogate must be told of its whole population"):
        bbt.tune(tree)
