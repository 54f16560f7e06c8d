"""A measurement warms up, then times the chip's best, ours and the plain loop in turn, again and again."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch

from backends.bench.evaluation import PARTS, Evaluation, ours, plainly
from backends.bench.likelihoods import generations
from backends.bench.memory import peak_memory_mb
from backends.bench.parts import scoring_shares
from backends.bench.plain import PlainScores
from backends.bench.rates import MatrixRate, operations
from backends.bench.workload import Generations, Workload
from backends.local.graphs import AFTER
from backends.local.loading import load
from backends.local.precision import rank_correlation

Against = Literal["plain", "plain-fp32"]


def measure(
    workload: Workload, against: Against | None = None, plain_queries: int | None = None, repeats: int = 5
) -> dict[str, Any]:
    """Measure a workload; spreads are [median, minimum, maximum] over the repeats.

    `against` the plain loop, in the same precision or in fp32, on the first `plain_queries` candidates of each
    generation (none: all of them; the time of one does not depend on their number).
    """
    work = generations(workload)
    device = torch.device(work.backend.info.device)
    memory, executed = _warmed_up(work, device)
    rate = MatrixRate(work.backend.model, n_tokens=4096)
    with work.backend.step_by_step():
        shares = scoring_shares(lambda: ours(work, seed=1), work.trunk, work.head, device)
    for _ in range(AFTER if device.type == "cuda" else 0):  # so that what becomes a graph is one
        ours(work, seed=1)
    loop = _plain_loop(work, against) if against else None
    mine, plain, rates = [], [], []
    for seed in range(2, 2 + repeats):
        rates.append(rate.measure())
        mine.append(ours(work, seed))
        if loop:
            chosen = [latents[:plain_queries] for latents in mine[-1].latents]
            plain.append(plainly(work, loop, chosen, seed))
    return {
        **_facts(work),
        **_speed(work, mine, rates, executed, shares["trunk"]),
        "parts_ms": _parts(mine, shares),
        "memory_before_mb": memory[0],
        "peak_memory_mb": memory[1],
        "matrix_rate": {"shape": rate.shape, "operations_per_second": _spread(rates)},
        "against": {"loop": against, **_compared(work, mine, plain)} if against else None,
    }


def _warmed_up(work: Generations, device: torch.device) -> tuple[tuple[float, float], int]:
    """Make the first evaluation: returns the memory before and at its peak, and the operations that it took."""
    executed = 0

    def first() -> None:
        nonlocal executed
        executed = operations(lambda: ours(work, seed=0))

    return peak_memory_mb(first, device), executed


def _plain_loop(work: Generations, against: Against) -> PlainScores:
    """The plain loop over the model as transformers loaded it, or over the same in fp32, warmed up on one candidate."""
    w, backend, model = work.workload, work.backend, work.backend.model
    if against == "plain-fp32" and model.dtype != torch.float32:
        model = load(w.model, backend.info.kind, torch.device(backend.info.device), torch.float32, None).model
    loop = work.plain_loop(model)
    loop.scores(work.prompts(np.zeros((1, w.intrinsic_dim)), 0)[0])
    return loop


def _facts(work: Generations) -> dict[str, Any]:
    """The facts of what was measured."""
    w, info = work.workload, work.backend.info
    lengths = work.row_lengths
    return {
        "model": w.model,
        "architecture": info.architecture,
        "device": info.device,
        "precision": info.precision,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": len(lengths),
        "row_tokens": [min(lengths), float(np.mean(lengths)), max(lengths)],
        **{
            k: v for k, v in asdict(w).items() if k not in ("model", "device", "precision", "n_rows", "data", "lengths")
        },
        "token_budget": work.backend.token_budget,
    }


def _speed(
    work: Generations, mine: Sequence[Evaluation], rates: Sequence[float], executed: int, trunk_share: float
) -> dict[str, Any]:
    """The rates of whole evaluations; `executed` are the matrix products' operations in one."""
    per_second = [e.queries_per_second for e in mine]
    queries = mine[0].n_queries
    done = [executed / queries * q for q in per_second]
    return {
        "queries_per_second": _spread(per_second),
        "tokens_per_second": _spread([q * work.encoded.n_tokens for q in per_second]),
        "operations_per_query": executed / queries,
        "operations_per_second": _spread(done),
        "share_of_matrix_rate": _spread([a / b for a, b in zip(done, rates, strict=True)]),
        "trunk_share_of_matrix_rate": _spread(
            [executed / (trunk_share * e.seconds["scoring"]) / rate for e, rate in zip(mine, rates, strict=True)]
        ),
    }


def _parts(mine: Sequence[Evaluation], shares: dict[str, float]) -> dict[str, float]:
    """The median milliseconds of a generation by part; scoring is shared out as the profiler saw it."""
    seconds = {part: float(np.median([e.seconds[part] for e in mine])) for part in PARTS}
    scoring = seconds.pop("scoring")
    seconds |= {part: share * scoring for part, share in shares.items()}
    return {part: 1e3 * s / len(mine[0].losses) for part, s in seconds.items()}


def _compared(work: Generations, mine: Sequence[Evaluation], plain: Sequence[Evaluation]) -> dict[str, Any]:
    """The speed-up pair by pair, and how far the scores (less their free constants) and the rankings agree."""
    pairs = list(zip(mine, plain, strict=True))
    differences, correlations = [], []
    for a, b in pairs:
        for ours_, plain_, our_losses, plain_losses in zip(a.scores, b.scores, a.losses, b.losses, strict=True):
            n = len(plain_)
            differences.append(np.abs(work.normalised(ours_[:n]) - work.normalised(plain_)).max())
            correlations.append(rank_correlation(our_losses[:n], plain_losses) if n > 2 else float("nan"))
    return {
        "queries_per_second": _spread([b.queries_per_second for b in plain]),
        "queries_per_repeat": plain[0].n_queries,
        "speedup": _spread([a.queries_per_second / b.queries_per_second for a, b in pairs]),
        "max_log_probability_difference": float(max(differences)),
        "min_rank_correlation": float(min(correlations)),
    }


def _spread(values: Sequence[float]) -> list[float]:
    """The median, minimum and maximum of values."""
    return [float(np.median(values)), float(min(values)), float(max(values))]
