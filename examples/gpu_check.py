"""Print the figures of a GPU that SPEED.md has: `python examples/gpu_check.py`, six minutes at most on an H100.

Random weights of published shapes stand in for models, so nothing is downloaded. Medians come with the least and the
greatest. `--tiny` takes the bundled models and a few queries instead, on any device, to see that the script works.
"""

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backends.bench import Workload, measure
from backends.bench.evaluation import ours
from backends.bench.table import spread
from backends.bench.workload import Generations
from backends.local import LocalBackend
from backends.models import bundled_models
from bbt import api
from bbt.config import make_config
from bbt.runs.observer import Observer, Progress
from bbt.scoring.losses import log_softmax
from bbt.tasks.builtin import builtin_task
from bbt.tasks.data import bundled_splits

MASKED = "random:roberta-large"
SHARES = {
    MASKED: 0.65,
    "random:gpt2-xl": 0.55,
    "random:smollm2-135m": 0.20,
    "random:smollm2-1.7b": 0.50,
    "random:llama-3-8b": 0.50,
}
"""The least share of the matrix rate that each shape is to reach."""
LONGEST = 8
"""How many kernels of a profile are shown."""
QUERIES = 8000
"""The queries of the whole run."""
Line = tuple[str, str, str]
"""What is measured, the figure, and what it is to reach."""


class Clock(Observer):
    """An observer that notes when each generation ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def progressed(self, progress: Progress) -> None:
        """Note that a generation has ended."""
        self.times.append(time.perf_counter())


def agreement(device: str) -> Iterator[Line]:
    """How far the device's log-probabilities of the bundled models are from a CPU's in fp32."""
    for name in bundled_models():
        found = {}
        for where, precision in (("cpu", "fp32"), (device, "fp32"), (device, "bf16")):
            backend = LocalBackend(name, device=where, precision=precision)
            task = builtin_task("sst2", backend.info.kind)
            rows = task.rows(bundled_splits("sst2", 16, 42, task.label_names).train[:8], 10)
            p0 = backend.embed_ids(backend.ordinary_ids()[1000:1010])
            prompts = np.concatenate([p0, p0 + 0.5 * backend.info.embedding_std])
            found[where, precision] = log_softmax(backend.label_scores(prompts, backend.encode(rows, task.label_words)))
        for precision in ("fp32", "bf16"):
            off = np.abs(found[device, precision] - found["cpu", "fp32"]).max()
            yield f"{name}, {precision} against a CPU's fp32", f"{off:.2g}", "1e-4" if precision == "fp32" else ""


def whole_run(model: str, device: str, settings: dict[str, Any]) -> Iterator[Line]:
    """A run of the paper's settings with separable CMA-ES: optimizer, dev checks and log included."""
    clock = Clock()
    config = {
        "preset": "paper",
        "model": {"name": model, "options": {"precision": "bf16", "device": device}},
        "evaluation": {"rows": 32},
        **settings,
    }
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as runs:
        api.run(make_config(config), runs, clock)
        (log,) = Path(runs).glob("*/events.jsonl")
        events = [json.loads(line) for line in log.read_text().splitlines()]
    ended = time.perf_counter()
    ledgers = [event["ledger"] for event in events if event["event"] == "generation"]
    backend, optimizer = (np.diff([one[name] for one in ledgers]) for name in ("backend_seconds", "optimizer_seconds"))
    steps = np.diff(clock.times)
    n_queries = settings["budget"]["queries"]
    took = sum(steps) * (1 + 1 / len(steps))
    yield f"a search of {n_queries} queries, s", f"{took:.1f}", "24" if n_queries == QUERIES else ""
    yield "the same with loading, screening and test, s", f"{ended - begun:.1f}", ""
    for what, seconds, goal in (
        ("from one generation to the next, dev checks included", steps, ""),
        ("of it outside the backend", steps - backend, "3"),
        ("of that the optimizer", optimizer, ""),
    ):
        yield f"{what}, ms", spread([np.median(seconds), min(seconds), max(seconds)], 1e-3), goal
        yield f"{what}, ms on average", f"{1e3 * np.mean(seconds):.1f}", goal


def share(model: str, least: float, size: dict[str, Any], repeats: int) -> Iterator[Line]:
    """The queries a second of a shape, and the share of what products of its own shapes reach on this chip."""
    result = measure(Workload(model, precision="bf16", **size), repeats=repeats)
    yield f"{model}: queries/s", spread(result["queries_per_second"]), ""
    yield (
        f"{model}: share of the matrix rate",
        spread(result["share_of_matrix_rate"], 0.01, " %"),
        f"{100 * least:.0f} %",
    )
    parts = ", ".join(f"{part} {ms:.3g}" for part, ms in result["parts_ms"].items())
    yield f"{model}: ms a generation", parts, ""


def against_plain(model: str, deep: bool, least: float, size: dict[str, Any], repeats: int) -> Iterator[Line]:
    """How many times as fast as plain transformers, one candidate after the other."""
    workload = Workload(model, precision="bf16", deep=deep, **size)
    against = measure(workload, "plain", plain_queries=4, repeats=repeats)["against"]
    name = f"{model}{', deep prompts' if deep else ''}"
    yield f"{name}: times plain transformers", spread(against["speedup"]), f"{least:g}"
    yield f"{name}: scores differ by", f"{against['max_log_probability_difference']:.2g}", ""


def profile(model: str, size: dict[str, Any]) -> Iterator[Line]:
    """The kernels of a generation, step by step and as it is made in a search."""
    work = Generations(Workload(model, precision="bf16", **size))
    with work.backend.step_by_step():
        ours(work, seed=0)
        yield from profiled(work, f"{model}: a generation step by step")
    for seed in range(4):
        ours(work, seed)
    yield from profiled(work, f"{model}: a generation")


def profiled(work: Generations, name: str) -> Iterator[Line]:
    """Wall and kernels of one generation, and the kernels that take longest."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    on_gpu = work.backend.info.device.startswith("cuda")
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    begun = time.perf_counter()
    ours(work, seed=9)
    wall = time.perf_counter() - begun
    with torch.profiler.profile(activities=activities) as watch:
        ours(work, seed=10)
    kernels = [event for event in watch.events() or () if event.device_type == torch.autograd.DeviceType.CUDA]
    spent: dict[str, list[float]] = {}
    for event in kernels:
        spent.setdefault(event.name, []).append(event.time_range.elapsed_us() / 1e3)
    busy = sum(map(sum, spent.values()))
    yield name, f"{1e3 * wall:.1f} ms" + (f", {len(kernels)} kernels of {busy:.1f} ms" if on_gpu else ""), ""
    for kernel, ms in sorted(spent.items(), key=lambda item: -sum(item[1]))[:LONGEST]:
        shown = kernel.replace("|", " ")[:80]
        yield f"{name}: `{shown}`", f"{sum(ms):.2f} ms in {len(ms)} calls", ""


def tiny_llama(folder: Path) -> str:
    """A shape with grouped heads, RMSNorm and RoPE that a CPU scores in a moment."""
    from transformers import LlamaConfig

    LlamaConfig(
        vocab_size=8192, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)  # fmt: skip
    return f"random:{folder}"


def figures(device: str, tiny: Path | None) -> Iterator[tuple[str, Callable[[], Iterator[Line]]]]:
    """What is measured, in the order of what it is worth; each with its name."""
    masked, repeats, shares, size = MASKED, 5, SHARES, {"device": device}
    settings: dict[str, Any] = {"optimizer": {"name": "cma-separable"}, "budget": {"queries": QUERIES}}
    if tiny is not None:
        masked, repeats, shares = "minilm-mlm", 1, {"gpt2-mini": 0.0, tiny_llama(tiny): 0.0}
        size |= {"population_size": 4, "n_rows": 4, "n_prompt_tokens": 5, "intrinsic_dim": 8}
        settings = {
            "data": {"k": 2},
            "prompt": {"n_prompt_tokens": 5, "intrinsic_dim": 8},
            "optimizer": {"name": "cma-separable", "population_size": 4},
            "budget": {"queries": 17, "dev_every": 8},
        }
    yield "agreement", lambda: agreement(device)
    yield "whole run", lambda: whole_run(masked, device, settings)
    yield "profile", lambda: profile(masked, size)
    yield "plain", lambda: against_plain(masked, False, 9, size, min(repeats, 3))
    yield "deep", lambda: against_plain(masked, True, 3, size, min(repeats, 2))
    for model, least in shares.items():
        yield model, partial(share, model, least, size, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=5.0, help="Begin nothing more after so long.")
    parser.add_argument("--only", help="Only the figures whose name holds this.")
    parser.add_argument("--tiny", action="store_true", help="Bundled models and few queries, to try the script.")
    options = parser.parse_args()
    begun = time.perf_counter()
    on_gpu = options.device.startswith("cuda")
    chip: Any = torch.cuda.get_device_name(options.device) if on_gpu else "a CPU"
    print(f"{chip}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}\n")
    print("| | found | to reach |\n|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, find in figures(options.device, Path(folder) if options.tiny else None):
            if options.only and options.only not in name:
                continue
            if time.perf_counter() - begun > 60 * options.minutes:
                print(f"| {name} | not measured: {options.minutes:g} minutes are over | |")
                continue
            try:
                for line in find():
                    print(f"| {' | '.join(line)} |", flush=True)
            except Exception as error:  # one that fails takes none of the others with it
                print(f"| {name} | failed: {type(error).__name__}: {str(error).splitlines()[0]} | |", flush=True)
            gc.collect()  # a model that is done with must not stand beside the next one
            if on_gpu:
                torch.cuda.empty_cache()
    print(f"\n{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
