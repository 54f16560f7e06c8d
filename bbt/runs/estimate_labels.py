"""An estimate of what a run would cost where rows have labels: label words are scored, or the likelihoods of labels."""

from collections.abc import Sequence
from dataclasses import replace

from bbt.runs.estimate import Costs, Estimate, Gauge, Measured, PlannedQueries, largest
from bbt.settings import CalibrationKind, PriceConfig
from bbt.tasks import Example, Split, Task


def estimated(
    price: PriceConfig,
    plan: PlannedQueries,
    task: Task,
    wordings: Sequence[Task],
    split: Split,
    others: Sequence[Sequence[Example]],
    gauge: Gauge,
    speed: float | None,
    calibration: CalibrationKind,
    content_free: Sequence[Example],
) -> Estimate:
    """The plan's cost on these rows and on those of `others`; `speed` in examples a second, if it is known. Dev judges
    as many prompts in each of the `wordings` of the task, and the best of them is tested.

    Fitted biases are read off train and dev rows of every judged prompt, content-free ones off rows of every prompt.
    Where labels may be read from many words, the manual prompt tries them, and every tested prompt gets its readout.
    """
    n_tokens, costs = plan.n_prompt_tokens, Costs()
    fitted = int(calibration == "fitted")
    unjudged = 0 if plan.judged_references or calibration in ("none", "batch") else 1
    free = content_free if calibration == "content-free" else ()
    read = int(calibration == "fitted" and plan.n_words > 0 and task.scored_by == "label_words")
    labelled = [*split.train, *split.dev]
    n_scores = max(read * plan.n_words, len(task.label_words))

    def add(n: int, rows: Sequence[Example], length: int, worded: Sequence[Task] = (), searched: bool = False) -> None:
        if n and rows:
            measured = largest(_measured(gauge, one, rows, length) for one in worded or (task,))
            costs.add(n, measured, gauge.scores_wire(measured, n_scores, searched), 1)

    add(plan.train, split.train, n_tokens, searched=True)
    if plan.training:
        costs.train(plan.training, _measured(gauge, task, split.train, n_tokens))
    for one in wordings:
        n_judged = plan.dev // len(wordings)
        add(n_judged, split.dev, n_tokens, (one,))
        add(fitted * plan.fits_on_train * n_judged, split.train, n_tokens, (one,))
        add(n_judged, free, n_tokens, (one,))
    add(plan.manual_dev, split.dev, 0)
    add(fitted * plan.manual_dev, split.train, 0)
    add(0 if plan.training else plan.train, free, n_tokens)
    add(plan.manual_dev, free, 0)
    for rows in (labelled, free):
        add(unjudged * max(plan.test - 1, 0), rows, n_tokens)
        add(unjudged * plan.manual_test, rows, 0)
    add(read * plan.test, labelled, n_tokens)
    add(read * (1 + plan.manual_test), labelled, 0)
    for rows in (split.test, *others):
        add(min(plan.test, 1), rows, n_tokens, wordings)
    add(max(plan.test - 1, 0), split.test, n_tokens)
    add(plan.manual_test, split.test, 0)
    for rows in () if plan.test else others:
        add(1, rows, 0)
    return costs.estimate(plan, read * (1 + plan.test + plan.manual_test), price, gauge, speed)


def _measured(gauge: Gauge, task: Task, rows: Sequence[Example], n_prompt_tokens: int) -> Measured:
    """Measure rows as the task scores them. Where it scores all labels of a row as targets, they are one row's."""
    if task.scored_by == "label_words":
        return gauge.encode(task.rows(rows, n_prompt_tokens))
    pairs = gauge.encode_pairs(task.labelled_rows(rows, n_prompt_tokens))
    return replace(pairs, n_examples=len(rows))
