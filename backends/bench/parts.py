"""The time of scoring is shared out among its parts here."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from backends.bench.evaluation import Evaluation
from backends.bench.rates import now


def scoring_shares(
    work: Callable[[], Evaluation], trunk: nn.Module, head: nn.Module, device: torch.device
) -> dict[str, float]:
    """The shares of the scoring's seconds: embedding (rows and prompts put together, scores taken back: all that is
    outside the model), trunk, and head.

    One evaluation is watched for them, and on a GPU waited for at each part, which costs shares less than seconds.
    """
    spent, last = {"trunk": 0.0, "head": 0.0}, [0.0]

    def begin(*_: Any) -> None:
        last[0] = now(device)

    def end(part: str) -> Callable[..., None]:
        def add(*_: Any) -> None:
            spent[part] += now(device) - last[0]
            last[0] = now(device)

        return add

    handles = [
        trunk.register_forward_pre_hook(begin),
        trunk.register_forward_hook(end("trunk")),
        head.register_forward_hook(end("head")),
    ]
    try:
        seconds = work().seconds["scoring"]
    finally:
        for handle in handles:
            handle.remove()
    return {"embedding": 1.0 - sum(spent.values()) / seconds, **{part: s / seconds for part, s in spent.items()}}
