"""The test of a run whose answers are texts: what the method has made writes on the test rows, beside what it started
from."""

from collections.abc import Sequence
from typing import Any

from bbt.experiment.experiment import Experiment, Trained
from bbt.experiment.generators import writing
from bbt.experiment.outcome import Tested, result_of
from bbt.scoring.ledger import Ledger
from bbt.tasks import Example
from bbt.tasks.sequence_metrics import signatures


def tested_texts(experiment: Experiment, trained: Trained) -> Tested:
    """Compute the task's metrics of what is generated on the test rows, with sacreBLEU's signatures beside its metrics,
    and the perplexity of the rows' targets."""
    e, task, rows = experiment, experiment.generation_task, experiment.split.test
    generators = {**(trained.references if e.references else {}), "tuned": trained.classifier}
    costs, ledgers = e.ledger.snapshot(), {name: Ledger() for name in generators}
    test: dict[str, dict[str, float]] = {name: {} for name in generators}
    perplexity: dict[str, float] = {}
    texts: list[str] = []
    truncated = 0
    for name, generator in generators.items() if rows else ():
        texts = writing(generator).texts(rows, ledgers[name])
        truncated = ledgers[name].truncated
        test[name] = task.evaluate_texts(texts, rows)
        perplexity[name] = writing(generator).target_scores(rows, ledgers[name]).perplexity
    figures = {
        "test": test,
        "also_test": {},
        "test_truncated": truncated,
        "perplexity": perplexity,
        "signatures": signatures(task.metrics),
    }
    result = result_of(e, trained, costs, ledgers.values(), figures)
    return Tested(trained.classifier, result, outputs(rows, texts))


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
