"""An estimate of what a run would cost where the answer is a text: targets are scored, and texts generated."""

from collections.abc import Sequence

from bbt.runs.estimate import Costs, Estimate, Gauge, PlannedQueries, largest
from bbt.settings import PriceConfig
from bbt.tasks import Example, GenerationTask, Split, Task


def estimated_texts(
    price: PriceConfig,
    plan: PlannedQueries,
    task: GenerationTask,
    wordings: Sequence[Task],
    split: Split,
    others: Sequence[Sequence[Example]],
    gauge: Gauge,
    speed: float | None,
    by_metric: bool,
) -> Estimate:
    """The plan's cost on these rows and on those of `others`; `speed` in examples a second, if it is known. Dev judges
    as many prompts in each of the `wordings` of the task, and the best of them is tested.

    A train query scores the rows' targets, or generates texts where the search goes by the metric (`by_metric`). Dev
    and test prompts do both, or generate alone where the model does not tell likelihoods. A generated text is counted
    with as many tokens as it may have."""
    n_tokens, costs = plan.n_prompt_tokens, Costs()
    n_new = task.decoding.max_new_tokens

    def score(n: int, rows: Sequence[Example], length: int, worded: Sequence[Task], searched: bool) -> None:
        measured = largest(gauge.encode_pairs(one.rows(rows, length)) for one in worded)
        costs.add(n, measured, gauge.scores_wire(measured, 1, searched), 1)

    def write(n: int, rows: Sequence[Example], length: int, worded: Sequence[Task]) -> None:
        measured = largest(gauge.encode_contexts(one.rows(rows, length), n_new) for one in worded)
        costs.add(n, measured, gauge.texts_wire(measured, n_new), n_new)

    def judge(n: int, rows: Sequence[Example], length: int, worded: Sequence[Task] = (task,)) -> None:
        if n and rows:
            write(n, rows, length, worded)
            if gauge.tells_likelihoods:
                score(n, rows, length, worded, searched=False)

    if plan.train and by_metric:
        write(plan.train, split.train, n_tokens, (task,))
    elif plan.train:
        score(plan.train, split.train, n_tokens, (task,), searched=True)
    if plan.training:
        costs.train(plan.training, gauge.encode_pairs(task.rows(split.train, n_tokens)))
    for one in wordings:
        judge(plan.dev // len(wordings), split.dev, n_tokens, (one,))
    judge(plan.manual_dev, split.dev, 0)
    judge(min(plan.test, 1), split.test, n_tokens, wordings)
    judge(max(plan.test - 1, 0), split.test, n_tokens)
    judge(plan.manual_test, split.test, 0)
    for rows in others:
        judge(1, rows, n_tokens if plan.test else 0, wordings)
    return costs.estimate(plan, 0, price, gauge, speed)
