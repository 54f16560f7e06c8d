"""Run a plan (methods x seeds x budgets) and print its table. Stop it anywhere; the same command goes on.

    python examples/benchmark.py examples/plans/sst2.yaml --runs runs/sst2 --workers 2

A plan names a `base` config, `seeds`, `budgets` in queries (a larger one extends the smaller one's run), and
`methods`: for each the keys that differ from the base. The k-shot split changes with the seed too.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml


def jobs(plan: dict[str, Any], runs: Path) -> list[tuple[str, dict[str, Any], Path, int]]:
    """Every run that is missing: (name, config, folder, budget), small budgets and early seeds first."""
    return [
        (f"{method}-seed{seed}", configured(plan, method, seed), runs / f"{method}-seed{seed}", budget)
        for budget in plan["budgets"]
        for seed in plan["seeds"]
        for method in plan["methods"]
        if budget in budgets_of(plan, method, seed) and result_at(runs / f"{method}-seed{seed}", budget) is None
    ]


def budgets_of(plan: dict[str, Any], method: str, seed: int) -> list[int]:
    """The plan's budgets, less what `only` rules out: {budget: {methods: [...], seeds: [...]}}."""
    only = plan.get("only", {})
    return [
        budget
        for budget in plan["budgets"]
        if method in only.get(budget, {}).get("methods", plan["methods"])
        and seed in only.get(budget, {}).get("seeds", plan["seeds"])
    ]


def configured(plan: dict[str, Any], method: str, seed: int) -> dict[str, Any]:
    """The base config with the method's keys over it."""
    tree = {**plan.get("base", {}), "seed": seed, "name": f"{method}-seed{seed}"}
    for section, values in (plan["methods"][method] or {}).items():
        tree[section] = {**tree.get(section, {}), **values} if isinstance(values, dict) else values
    return tree


def result_at(folder: Path, budget: int) -> dict[str, Any] | None:
    """The result that a run had when this budget was spent."""
    from bbt.records import EventLog

    if not (folder / "events.jsonl").is_file():
        return None
    budgets, found = [yaml.safe_load((folder / "config.yaml").read_text())["budget"]["queries"]], None
    for event in EventLog(folder / "events.jsonl").events:
        if event["event"] == "extend":
            budgets.append(event["queries"])
        elif event["event"] == "result" and budgets[-1] == budget:
            found = event
    return found


def do(job: tuple[str, dict[str, Any], Path, int]) -> str:
    """Run, resume or extend one run."""
    import torch

    from bbt import api
    from bbt.config import make_config

    torch.set_num_threads(1)
    name, tree, folder, budget = job
    if (folder / "config.yaml").is_file():
        outcome = api.resume(folder, budget)
    else:
        config = make_config({**tree, "budget": {**tree.get("budget", {}), "queries": budget}})
        outcome = api.run(config, folder.parent)
    tuned = next(iter(outcome.result["test"]["tuned"].values()))
    return f"{name} at {budget} queries: test {100 * tuned:.2f}"


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation, in percent."""
    return f"{100 * mean(values):.2f} ± {100 * stdev(values):.2f}" if len(values) > 1 else f"{100 * values[0]:.2f}"


def table(plan: dict[str, Any], runs: Path) -> str:
    """Markdown: a row a method and budget, over the seeds that have finished."""
    lines = [
        "| method | queries | seeds | test | dev | queries/s | optimizer s | peak MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    manual: list[float] = []
    for budget in plan["budgets"]:
        for method in plan["methods"]:
            found = [result_at(runs / f"{method}-seed{seed}", budget) for seed in plan["seeds"]]
            results = [result for result in found if result]
            if not results:
                continue
            metric = next(iter(results[0]["test"]["tuned"]))
            manual += [result["test"]["manual"][metric] for result in results]
            tuned = [result["test"]["tuned"][metric] for result in results]
            dev = [result["selected"]["metric"] for result in results]
            cost = [result["cost"] for result in results]
            rate = mean(c["train_queries"] / c["seconds"] for c in cost)
            lines.append(
                f"| {method} | {budget} | {len(results)} | {spread(tuned)} | {spread(dev)} | {rate:.1f} "
                f"| {mean(c['optimizer_seconds'] for c in cost):.1f} "
                f"| {max(result['peak_memory_mb'] for result in results):.0f} |"
            )
    if manual:
        lines.insert(2, f"| manual prompt | 0 | | {spread(sorted(set(manual)))} | | | | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="only print the table of what has finished")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    plan = yaml.safe_load(args.plan.read_text(encoding="utf-8"))
    todo = [] if args.table else jobs(plan, args.runs)
    # A process a run: its peak memory is its own.
    pool = ProcessPoolExecutor(args.workers, mp_context=get_context("spawn"), max_tasks_per_child=1)
    futures = [pool.submit(do, job) for job in todo]
    for number, future in enumerate(as_completed(futures), start=1):
        print(f"[{number}/{len(todo)}] {future.result()}", flush=True)
    print(table(plan, args.runs))


if __name__ == "__main__":
    main()
