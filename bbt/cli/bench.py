"""The command `bbt bench` measures how fast a model scores prompts here."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from bbt.cli.common import AsJson, print_table


def bench(
    model: Annotated[
        str | None, typer.Argument(help="Bundled name, folder, hub name, or random:SHAPE (none: a bundled one).")
    ] = None,
    task: Annotated[
        str, typer.Option(help="Task that gives template and label words; squad: likelihoods of its answers.")
    ] = "sst2",
    data: Annotated[
        Path | None, typer.Option(help="A file of the task's rows; 16 a class are taken, or the first 32.")
    ] = None,
    length: Annotated[list[int] | None, typer.Option(help="Rows of so many tokens of text instead; repeat it.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Repeat or cut the rows to so many.")] = None,
    population: Annotated[int, typer.Option(min=2)] = 20,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 50,
    dim: Annotated[int, typer.Option(min=1, help="Intrinsic dimension d.")] = 500,
    optimizer: Annotated[str, typer.Option(help="See bbt ls optimizers.")] = "cma-separable",
    deep: Annotated[bool, typer.Option("--deep", help="A prompt for every layer, as BBTv2.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16, fp16.")] = "auto",
    token_budget: Annotated[int | None, typer.Option(min=1, help="Tokens of a micro-batch at most.")] = None,
    against: Annotated[
        Literal["plain", "plain-fp32"] | None,
        typer.Option(help="Time the plain transformers loop beside it, in the same precision or in fp32."),
    ] = None,
    plain_queries: Annotated[int | None, typer.Option(min=1, help="Candidates the plain loop scores a repeat.")] = None,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    as_json: AsJson = False,
) -> None:
    """Measure queries a second, memory, and the share of what the chip can do.

    Example: bbt bench random:roberta-base --against plain
    """
    from backends.bench import Workload, measure, table
    from bbt.tasks import GENERATION_TASKS

    model = model or ("gpt2-mini" if task in GENERATION_TASKS else "minilm-mlm")
    workload = Workload(
        model=model,
        task=task,
        data=data,
        lengths=tuple(length or ()),
        n_rows=rows,
        population_size=population,
        n_prompt_tokens=prompt_tokens,
        intrinsic_dim=dim,
        optimizer=optimizer,
        deep=deep,
        device=device,
        precision=precision,
        token_budget=token_budget,
    )
    result = measure(workload, against, plain_queries, repeats)
    if as_json:
        print(json.dumps(result))
    else:
        print_table(f"{model} · {task} · {result['device']}, {result['precision']}", ("", ""), table(result))
