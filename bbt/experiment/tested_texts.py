"""The test of a run whose answers are texts: what the method has made writes on the test rows, beside what it started
from."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bbt.experiment.experiment import Experiment, Trained
from bbt.experiment.generators import Generator, writing
from bbt.experiment.outcome import Tested, result_of
from bbt.scoring.ledger import Ledger
from bbt.tasks import Example, GenerationTask
from bbt.tasks.generation import references
from bbt.tasks.sequence_metrics import signatures

LOG = logging.getLogger(__name__)


def tested_texts(experiment: Experiment, trained: Trained) -> Tested:
    """Compute the task's metrics of what is generated on the test rows, with sacreBLEU's signatures beside its metrics,
    and the perplexity of the rows' targets."""
    e, rows = experiment, experiment.split.test
    generators = {**(trained.references if e.references else {}), "tuned": trained.classifier}
    costs, ledgers = e.ledger.snapshot(), {name: Ledger() for name in generators}
    found = {name: _written(writing(one), e.generation_task, rows, ledgers[name]) for name, one in generators.items()}
    beside = Ledger()
    also_test = {
        other.name: {
            **_written(writing(trained.classifier), e.generation_task, others, beside).figures,
            "examples": len(others),
        }
        for other, others in e.other_tests
    }
    figures = {
        "test": {name: one.metrics for name, one in found.items()},
        "also_test": also_test,
        "test_truncated": ledgers["tuned"].truncated + beside.truncated,
        "perplexity": {name: one.perplexity for name, one in found.items() if one.perplexity is not None},
        "signatures": signatures(e.task.metrics, references(rows)),
    }
    _warn_of_empty(found["tuned"].texts, e.generation_task)
    result = result_of(e, trained, costs, (*ledgers.values(), beside), figures)
    return Tested(trained.classifier, result, outputs(rows, found["tuned"].texts))


def _warn_of_empty(texts: Sequence[str], task: GenerationTask) -> None:
    """Tell the user how many texts are empty, where most of them are: a metric then says little."""
    n_empty = sum(not text for text in texts)
    if 2 * n_empty > len(texts):
        LOG.warning(
            "%d of %d texts on the test rows are empty: the model ends them at once, or begins them with one of "
            "task.decoding.stop (%s). Change the template, the stop strings or the model.",
            n_empty,
            len(texts),
            ", ".join(map(repr, task.decoding.stop)) or "none",
        )


@dataclass(frozen=True)
class _Written:
    """What a generator has written on B rows, and how good it is."""

    texts: Sequence[str]
    """(B,) the texts."""
    metrics: dict[str, float]
    """The task's metrics of them by name; none where there are no rows."""
    perplexity: float | None
    """The perplexity of the rows' targets (none: there are no rows)."""

    @property
    def figures(self) -> dict[str, float]:
        """The metrics, and the perplexity beside them."""
        return self.metrics if self.perplexity is None else {**self.metrics, "perplexity": self.perplexity}


def _written(generator: Generator, task: GenerationTask, rows: Sequence[Example], ledger: Ledger) -> _Written:
    """Have a generator write on rows, and compare the texts with their references."""
    if not rows:
        return _Written((), {}, None)
    texts, own = generator.texts(rows, ledger), Ledger()
    scores = generator.target_scores(rows, own)
    ledger.add(replace(own, truncated=0))  # the rows that are cut have been counted
    return _Written(texts, task.evaluate_texts(texts, rows), None if scores is None else scores.perplexity)


def outputs(examples: Sequence[Example], texts: Sequence[str]) -> list[dict[str, Any]]:
    """Make a record for each row: its texts, its references, and what was generated."""
    return [
        {
            "source": example.text,
            **({"source_pair": example.text_pair} if example.text_pair else {}),
            "references": list(example.targets),
            "output": text,
        }
        for example, text in zip(examples, texts, strict=True)
    ]
