"""An estimate of what a run would cost where the answer is a text: targets are scored, and texts generated."""

from collections.abc import Sequence

from bbt.backend import Segment
from bbt.runs.estimate import Estimate, Gauge, PlannedQueries
from bbt.settings import PriceConfig
from bbt.tasks import Example, GenerationTask, Split


def estimated_texts(
    price: PriceConfig,
    plan: PlannedQueries,
    task: GenerationTask,
    split: Split,
    others: Sequence[Sequence[Example]],
    gauge: Gauge,
    speed: float | None,
    by_metric: bool,
) -> Estimate:
    """The plan's cost on these rows and on those of `others`; `speed` in examples a second, if it is known.

    A train query scores the rows' targets, or generates texts where the search goes by the metric (`by_metric`). Dev
    and test prompts do both. A generated text is counted with as many tokens as it may have."""
    scored, written = int(not by_metric), int(by_metric)
    n_tokens = plan.n_prompt_tokens
    judged = [
        (plan.dev, split.dev, n_tokens),
        (plan.manual_dev, split.dev, 0),
        (plan.test, split.test, n_tokens),
        (plan.manual_test, split.test, 0),
        *((1, rows, n_tokens if plan.test else 0) for rows in others),
    ]
    parts = [
        (plan.train, split.train, n_tokens, scored, written),
        *((n, rows, length, 1, 1) for n, rows, length in judged),
    ]
    n_scored = n_written = up = 0
    bytes_up = bytes_down = 0.0
    for n, rows, length, scores, writes in parts:
        if not (n and rows):
            continue
        whole = task.rows(rows, length)
        contexts = [(*row[:-1], Segment("mask")) for row in whole]
        n_scored += n * len(rows) * scores
        n_written += n * len(rows) * writes
        up += n * (scores * gauge.tokens(whole) + writes * gauge.tokens(contexts))
        wire = gauge.wire(whole, 1)
        bytes_up += n * (scores + writes) * wire.up
        bytes_down += n * scores * wire.down
    down = n_scored + n_written * task.decoding.max_new_tokens
    examples = n_scored + n_written
    return Estimate(
        plan.train,
        plan.dev + plan.manual_dev,
        plan.test + plan.manual_test,
        examples,
        up,
        down,
        round(bytes_up),
        round(bytes_down) + 4 * n_written * task.decoding.max_new_tokens,
        price.of(up, down),
        examples / speed if speed else None,
        gauge.counted,
    )
