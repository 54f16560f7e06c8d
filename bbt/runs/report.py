"""A run's tables for people are made here."""

from typing import Any

from bbt.runs.estimate import Estimate


def result_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The closing table with its head first: one row for each prompt, each metric in percent, and the targets'
    perplexity where it is known; then what was tuned on the rows of each other test."""
    metrics = list(next(iter(result["test"].values())))
    perplexity = result.get("perplexity") or {}
    rows = [("prompt", *(f"test {metric}" for metric in metrics), *(["perplexity"] if perplexity else []))]
    for name, values in result["test"].items():
        last = [f"{perplexity[name]:,.2f}"] if perplexity else []
        rows.append((name, *(f"{100 * values[metric]:.2f}" for metric in metrics), *last))
    for name, values in (result.get("also_test") or {}).items():
        last = [f"{values['perplexity']:,.2f}" if "perplexity" in values else "-"] if perplexity else []
        found = (f"{100 * values[metric]:.2f}" if metric in values else "-" for metric in metrics)
        rows.append((f"tuned, on {name} ({values['examples']:,} rows)", *found, *last))
    return rows


def cost_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The table of what the run cost: pairs of a name with its unit, and a figure."""
    cost, price = result["cost"], result.get("price") or {}
    money = [(f"price of the {part}", f"{paid:,.4f}") for part, paid in price.items() if paid]
    return [
        ("tuned numbers", f"{result['n_parameters']:,}"),
        ("train queries", f"{cost['train_queries']:,}"),
        ("dev queries", f"{cost['dev_queries']:,}"),
        ("examples scored", f"{cost['examples']:,}"),
        ("prompt bytes in", f"{cost['bytes_up']:,}"),
        ("score bytes out", f"{cost['bytes_down']:,}"),
        *money,
        ("seconds", f"{cost['seconds'] + cost['optimizer_seconds']:.1f}"),
        ("of them in the optimizer", f"{cost['optimizer_seconds']:.1f}"),
        ("queries per second", f"{cost['train_queries'] / max(cost['seconds'], 1e-9):.1f}"),
        (f"peak memory of the {result.get('peak_memory_of', 'process')} (MB)", f"{result['peak_memory_mb']:,.0f}"),
    ]


def estimate_rows(estimate: Estimate) -> list[tuple[str, str]]:
    """The table of what a run would cost: pairs of a name with its unit, and a figure."""
    e = estimate
    seconds = "unknown, no run yet" if e.seconds is None else f"{e.seconds:,.0f}"
    return [
        ("train queries", f"{e.train_queries:,}"),
        ("dev queries", f"{e.dev_queries:,}"),
        ("tested prompts", f"{e.tested_prompts}"),
        *([("gradient steps", f"{e.gradient_steps:,}")] if e.gradient_steps else []),
        ("examples scored", f"{e.examples:,}"),
        ("tokens up", f"{e.tokens_up:,}"),
        ("tokens down", f"{e.tokens_down:,}"),
        ("tokens are counted", e.counted),
        ("bytes up, about", f"{e.bytes_up:,}"),
        ("bytes down, about", f"{e.bytes_down:,}"),
        ("price", f"{e.price:,.4f}"),
        ("seconds, as the last run", seconds),
    ]


def selected_line(result: dict[str, Any]) -> str:
    """The sentence that names the candidate that dev chose."""
    best = result["selected"]
    deploy = "; no soft prompt to deploy" if best["who"] == "manual" else ""
    return (
        f"selected: {best['who']} at query {best['train_queries']}, dev metric {100 * best['metric']:.2f}, "
        f"dev loss {best['loss']:.4f}{deploy}"
    )
