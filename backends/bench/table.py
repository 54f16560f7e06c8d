"""A measurement becomes rows for people here."""

from collections.abc import Sequence
from typing import Any


def table(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs (what, how much) of a result of `measure`; figures are medians with (minimum to maximum)."""
    shortest, mean, longest = result["row_tokens"]
    rate = result["matrix_rate"]
    rows = [
        ("rows", f"{result['rows']} of {shortest} to {longest} tokens, {mean:.1f} on average"),
        ("population, prompt", f"{result['population_size']} x {result['n_prompt_tokens']} tokens{_deep(result)}"),
        ("threads", str(result["threads"])),
        ("queries/s", spread(result["queries_per_second"])),
        ("tokens/s", spread(result["tokens_per_second"])),
        ("operations a query", f"{result['operations_per_query'] / 1e9:.4g} G"),
        ("operations/s", spread(result["operations_per_second"], 1e9, " G")),
        (f"best product, {' x '.join(map(str, rate['shape']))}", spread(rate["operations_per_second"], 1e9, " G/s")),
        ("share of it", spread(result["share_of_matrix_rate"], 0.01, " %")),
        ("share of it in the trunk", spread(result["trunk_share_of_matrix_rate"], 0.01, " %")),
        *((f"{part}, ms a generation", f"{ms:.4g}") for part, ms in result["parts_ms"].items()),
        ("memory before, at the peak", f"{result['memory_before_mb']:.0f}, {result['peak_memory_mb']:.0f} MB"),
    ]
    return rows + (_against(result["against"]) if result["against"] else [])


def _against(against: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"{against['loop']}: queries/s", spread(against["queries_per_second"])),
        (f"times as fast as {against['loop']}", spread(against["speedup"])),
        ("largest difference of a log-probability", f"{against['max_log_probability_difference']:.2g}"),
        ("rank correlation of the losses, at least", f"{against['min_rank_correlation']:.4f}"),
    ]


def _deep(result: dict[str, Any]) -> str:
    return ", one a layer" if result["deep"] else ""


def spread(values: Sequence[float], unit: float = 1.0, suffix: str = "") -> str:
    """The text of a median (minimum to maximum)."""
    median, low, high = (f"{value / unit:.3g}" for value in values)
    return f"{median} ({low} to {high}){suffix}"
