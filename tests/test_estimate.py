"""What is said of a run beforehand is what it then counts: queries, steps, rows, tokens, and bytes about."""

import json

import numpy as np
import pytest
from serving import serving
from test_generation import QUESTIONS
from test_generation import tree as questions
from toy import shared_config

from bbt.api import estimate, tune
from bbt.baselines.training import batches
from bbt.experiment import tested, tested_texts
from bbt.experiment.outcome import result_of
from bbt.methods import load_method
from bbt.runs.estimate import GradientSteps

pytestmark = [
    pytest.mark.filterwarnings("ignore:the parts of the data overlap"),
    pytest.mark.filterwarnings("ignore:.* rows were longer"),
]
TRAINED = {"steps": 5, "dev_every": 2, "batch_size": 3, "gradient_accumulation": 2}
SHOWN = {"n_orders": 3, "n_demonstrations": 2}
LABELS = [{"text": f"{text} {i}", "label": i % 2} for i, text in enumerate(["a film", "bad", "the plot is worse"] * 6)]
PROMPT = {"n_prompt_tokens": 3, "n_screened": 2}


@pytest.fixture
def billed(monkeypatch):
    """A function that sums up a count over the ledgers of the last run: those of its search and of its tests."""
    ledgers = []

    def recorded(experiment, trained, costs, tests, figures):
        ledgers[:] = [experiment.ledger, *tests]
        return result_of(experiment, trained, costs, tests, figures)

    for module in (tested, tested_texts):
        monkeypatch.setattr(module, "result_of", recorded)
    return lambda name: sum(getattr(ledger, name) for ledger in ledgers)


def prompt_of(method):
    return {"instruction": "Say it ."} if method["name"] == "instruction" else PROMPT


def labels(folder, model, method, **changes):
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LABELS))
    rows = str(folder / "labels.jsonl")
    return shared_config(
        {
            "task": {"name": "own", "template": "{prompt} {text} . It was {mask}", "label_words": ["bad", "great"]},
            "data": {"source": "files", "k": 4, "train": rows, "test": rows},
            "model": {"name": str(model), "options": {"precision": "fp32", "device": "cpu"}},
            "evaluation": {"rows": 6},
            "method": method,
            "prompt": prompt_of(method),
            "price": {"up": 2.0, "down": 5.0},
            **changes,
        }
    )


def agree(settings, billed):
    """The estimate, after a run of which all numbers that can be known were as said."""
    guess, result = estimate(settings), tune(settings).result
    cost = result["cost"]
    assert (guess.train_queries, guess.dev_queries) == (cost["train_queries"], cost["dev_queries"])
    assert guess.examples == billed("examples")
    orders = getattr(load_method(settings), "n_orders", 1)  # which of them is tested is not known
    assert billed("tokens_up") <= guess.tokens_up <= billed("tokens_up") * (1 + 0.05 * (orders > 1))
    return guess


@pytest.mark.parametrize("calibration", ["fitted", "content-free", "none"])
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("gpt2", {"name": "prompt-tuning", **TRAINED}),
        ("t5", {"name": "lora", **TRAINED}),
        ("bert", {"name": "prefix-tuning", **TRAINED}),
        ("gpt2", {"name": "in-context", **SHOWN}),
        ("bert", {"name": "instruction"}),
    ],
    ids=lambda value: value if isinstance(value, str) else value["name"],
)
def test_of_a_classification(name, method, calibration, tiny_folder, tmp_path, billed):
    guess = agree(labels(tmp_path, tiny_folder(name), method, calibration=calibration), billed)
    assert guess.tokens_down == billed("tokens_down")
    assert guess.gradient_steps == method.get("steps", 0)
    assert (guess.bytes_up, guess.bytes_down) == (billed("bytes_up"), billed("bytes_down"))


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("gpt2", {"name": "prompt-tuning", **TRAINED}),
        ("bart", {"name": "lora", **TRAINED}),
        ("t5", {"name": "prefix-tuning", **TRAINED}),
        ("gpt2", {"name": "in-context", **SHOWN}),
        ("bart", {"name": "in-context", **SHOWN}),
        ("t5", {"name": "instruction"}),
    ],
    ids=lambda value: value if isinstance(value, str) else value["name"],
)
def test_of_a_task_that_writes(name, method, tiny_folder, tmp_path, billed):
    """All but the tokens and bytes of the texts, which may end before the six tokens that are counted for each."""
    n_screened = 2 * 2 if method["name"] == "prompt-tuning" else 0
    n_scored = n_screened + (sum(GradientSteps(5, 3, 2).sizes(2)) if "steps" in method else 0)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    evaluation = {"rows": 4, "also_test": {"others": str(tmp_path / "rows.jsonl")}}
    settings = questions(tmp_path, tiny_folder(name), method=method, prompt=prompt_of(method), evaluation=evaluation)
    guess = agree(shared_config({**settings, "price": {"up": 2.0}}), billed)
    assert guess.tokens_down == (guess.examples - n_scored) * (1 + 6) // 2 + n_screened
    assert guess.bytes_up == billed("bytes_up")
    assert guess.bytes_down >= 0.5 * billed("bytes_down") > 0


@pytest.mark.parametrize("method", [{"name": "manual"}, {"name": "black-box", "n_words": 0}], ids=lambda m: m["name"])
def test_of_labels_that_are_scored_by_their_likelihood(method, tiny_folder, tmp_path, billed):
    task = {"name": "own", "template": "{prompt} {text} . It was {mask}", "scored_by": "likelihood"}
    changes = {"task": {**task, "label_words": ["bad film", "great"]}}
    if method["name"] == "black-box":
        changes |= {"optimizer": {"population_size": 4}, "budget": {"queries": 18, "dev_every": 8}}
        changes["selection"] = {"baselines": False}
        changes["prompt"] = {"n_prompt_tokens": 3, "intrinsic_dim": 6, "n_screened": 2}
    guess = agree(labels(tmp_path, tiny_folder("gpt2"), method, **changes), billed)
    assert (guess.tokens_down, guess.bytes_down) == (billed("tokens_down"), billed("bytes_down"))


def test_the_batches_of_an_epoch_are_those_that_a_training_takes():
    for n_rows, size in ((8, 3), (6, 3), (2, 5)):
        taken = batches(n_rows, size)
        assert GradientSteps(5, size, 2).sizes(n_rows) == [len(next(taken)) for _ in range(10)]


@pytest.mark.parametrize("backend", ["http", "vllm"])
@pytest.mark.parametrize("by", ["likelihood", "metric"])
def test_of_the_bytes_of_a_task_that_writes_behind_a_server(backend, by, tiny_folder, tiny_backend, serve, tmp_path):
    """Targets and texts cross the wire as different things: within a third of what was measured."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    changes = {"selection": {"baselines": False, "n_best": 1}, "evaluation": {"rows": 0, "references": False}}
    if by == "metric":
        changes["objective"] = {"loss": "negative_metric"}
    tree = questions(tmp_path, tiny_folder("gpt2"), **changes)
    with serving(tiny_backend("gpt2")) as url:
        url = url if backend == "http" else serve(max_length=65).url
        model = {"name": str(tiny_folder("gpt2")), "backend": backend, "options": {"url": url}}
        settings = shared_config({**tree, "model": model})
        guess, cost = estimate(settings), tune(settings).result["cost"]
    assert guess.examples == cost["examples"]
    np.testing.assert_allclose(guess.bytes_up, cost["bytes_up"], rtol=1 / 3)
    assert 2 / 3 * cost["bytes_down"] < guess.bytes_down < 3 * cost["bytes_down"]
