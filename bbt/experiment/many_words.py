"""An experiment whose labels are read from many words, where its labelled rows say that this pays."""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np

from bbt.experiment.classifiers import SoftPromptClassifier
from bbt.experiment.experiment import Experiment, Trained
from bbt.scoring.judge import Verdict
from bbt.scoring.readout import Strength, chosen_strength, fitted_readout
from bbt.scoring.scorer import Scorer
from bbt.scoring.scorers import scorer_of
from bbt.scoring.words import further_words
from bbt.types import Event, Labels, Prompts, RowScores


def read_words(experiment: Experiment, n_words: int) -> None:
    """Let an experiment's labels be read from `n_words` words, where these answer left-out rows clearly better than the
    label words do: from then on its train and dev rows are scored on all of them, and its `strength` says how far a
    readout of them goes.

    It counts one dev query, of the manual prompt, which scores the train rows as well, and logs the event `words`. A
    run that was recorded without it goes on without it.
    """
    e = experiment
    if e.calibration != "fitted" or e.task.scored_by != "label_words" or e.log.upcoming not in (None, "words"):
        return
    words = further_words(e.backend, e.task, [*e.split.train, *e.split.dev], n_words)
    if not words:
        return
    task = replace(e.task, words=words)
    scorers = [scorer_of(e.backend, task, rows, e.ledger) for rows in (e.split.train, e.split.dev)]
    recorded = e.log.recall("words", words=list(words))
    if recorded is None:
        recorded = _tried(e, task.words, scorers)
    e.ledger.restore(recorded["ledger"])
    if recorded["strength"]:
        e.task, (e.train, e.dev), e.strength = task, scorers, Strength(**recorded["strength"])


def _tried(e: Experiment, words: Sequence[str], scorers: Sequence[Scorer]) -> Event:
    """Score the manual prompt on all words, and log which strength its left-out rows prefer."""
    start, cut = time.perf_counter(), e.ledger.truncated
    scores, labels = _labelled(e.no_prompt[None], scorers)
    found = chosen_strength(scores, labels, len(e.task.label_words)) if np.isfinite(scores).all() else None
    e.ledger.dev_queries += 1
    e.ledger.seconds += time.perf_counter() - start
    if found is None:
        e.ledger.truncated = cut  # these rows are encoded, and counted, once more without the words
    facts = {"words": list(words), "strength": found and asdict(found), "ledger": e.ledger.snapshot()}
    event = {"event": "words", **facts}
    e.log.append(event)
    return event


def read_out(
    experiment: Experiment, classifier: SoftPromptClassifier, scorers: Sequence[Scorer]
) -> tuple[SoftPromptClassifier, tuple[float, ...] | None]:
    """Return the classifier with the weights of its own readout, and the readout's class biases (K,), fitted to the
    labelled rows that the scorers score, at one dev query. Where labels are read from the label words alone, the
    classifier stays as it is, and None stands for biases."""
    e = experiment
    if e.strength is None:
        return classifier, None
    start = time.perf_counter()
    scores, labels = _labelled(classifier.prompt.batch, scorers)
    readout = fitted_readout(scores, labels, len(e.task.label_words), e.strength)
    e.ledger.dev_queries += 1
    e.ledger.seconds += time.perf_counter() - start
    return replace(classifier, prompt=replace(classifier.prompt, weights=readout.weights)), readout.biases


def judged_words(
    experiment: Experiment, classifier: SoftPromptClassifier, who: str
) -> tuple[SoftPromptClassifier, Verdict]:
    """Judge a prompt by left-out rows, and return it with its readout, whose class biases the verdict holds. It takes
    an experiment whose labels are read from many words, and counts two dev queries."""
    verdict = experiment.judge_words(classifier, who)
    found, biases = read_out(experiment, classifier, (experiment.train, experiment.dev))
    return found, replace(verdict, biases=biases)


def read_trained(experiment: Experiment, trained: Trained, n_words: int) -> Trained:
    """Read the labels of a soft prompt that was trained on the label words from `n_words` words, where these pay under
    the manual prompt: see `read_words`. Its rows have been seen by the training, so that its verdict flatters."""
    e, before = experiment, trained.classifier
    read_words(e, n_words)
    if e.strength is None or not isinstance(before, SoftPromptClassifier):
        return trained
    who = f"{trained.who} words"
    found, verdict = judged_words(e, e.soft_prompt(before.prompt.embeddings, before.prompt.anchor), who)
    n_parameters = trained.n_parameters + found.prompt.n_weights
    return replace(trained, classifier=found, who=who, verdict=verdict, n_parameters=n_parameters)


def _labelled(prompt: Prompts, scorers: Sequence[Scorer]) -> tuple[RowScores, Labels]:
    """The scores (B, M) of all the scorers' rows under a prompt (1, T, H), and their labels (B,)."""
    scores = np.concatenate([scorer.scores(prompt)[0] for scorer in scorers])
    return scores, np.concatenate([scorer.labels for scorer in scorers])
