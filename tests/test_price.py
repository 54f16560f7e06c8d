"""Money: tokens counted, the ceiling, and the estimate before a run."""

import json

import numpy as np
import pytest
from toy import shared_config
from typer.testing import CliRunner

from backends.gauge import open_gauge
from bbt.api import estimate, resume, run, tune
from bbt.cli import app
from bbt.errors import ConfigError, RunError
from bbt.methods import load_method, to_yaml
from bbt.runs.report import cost_rows
from bbt.settings import PriceConfig


def config(folder, **sections):
    tree = {
        "task": {"name": "sst2", "label_words": ["bad", "great"]},
        "data": {"k": 4},
        "model": {"name": str(folder), "options": {"precision": "fp32", "device": "cpu"}},
        "prompt": {"n_prompt_tokens": 3, "intrinsic_dim": 6, "n_screened": 2},
        "optimizer": {"population_size": 4},
        "budget": {"queries": 40, "dev_every": 8},
        "evaluation": {"rows": 10},
        "price": {"up": 2.0, "down": 5.0},
        "method": {"name": "black-box", "n_words": 0},  # with more the run says whether they are read
    }
    return shared_config({**tree, **sections})


def total(result):
    return result["price"]["search"] + result["price"]["test"]


def test_a_million_tokens_cost_the_price():
    assert PriceConfig(up=2.0, down=8.0).of(500_000, 250_000) == 3.0


@pytest.mark.parametrize("method", ["black-box", "manual"])
def test_the_estimate_is_what_the_run_then_costs(method, tiny_folder):
    selection = {"baselines": False, "n_best": 3}
    evaluation = {"rows": 10, "also_test": {"sst2": None}}
    settings = config(
        tiny_folder("gpt2"), method={"name": method, "n_words": 0}, selection=selection, evaluation=evaluation
    )
    guess, result = estimate(settings), tune(settings).result
    cost = result["cost"]
    assert (guess.train_queries, guess.dev_queries) == (cost["train_queries"], cost["dev_queries"])
    assert guess.price == pytest.approx(total(result), rel=1e-12)
    assert guess.seconds is None


@pytest.mark.parametrize("method", ["black-box", "manual"])
def test_words_that_are_tried_and_not_read_cost_at_most_the_estimate(method, tiny_folder):
    settings = config(tiny_folder("gpt2"), method={"name": method, "n_words": 128})
    guess, result = estimate(settings), tune(settings).result
    assert "manual words" not in result["test"]
    assert guess.dev_queries > result["cost"]["dev_queries"]
    assert guess.bytes_down > result["cost"]["bytes_down"]
    assert total(result) < guess.price


@pytest.mark.parametrize("method", ["hard-prompt", "token-search"])
def test_a_search_that_scores_nothing_twice_costs_at_most_the_estimate(method, tiny_folder):
    settings = config(tiny_folder("gpt2"), method={"name": method}, calibration="none")
    guess, result = estimate(settings), tune(settings).result
    assert guess.train_queries >= result["cost"]["train_queries"]
    assert 0.5 * guess.price < total(result) <= guess.price


def test_the_estimate_of_local_bytes_is_exact(tiny_folder):
    settings = config(tiny_folder("gpt2"), evaluation={"rows": 1, "references": False})
    guess, cost = estimate(settings), tune(settings).result["cost"]
    one_tested_row = 4 * 3 * 32, 4 * 2
    assert (guess.bytes_up, guess.bytes_down) == tuple(np.add(one_tested_row, (cost["bytes_up"], cost["bytes_down"])))


def test_the_speed_of_the_last_run_of_that_model_gives_the_seconds(tiny_folder, tmp_path):
    settings = config(tiny_folder("gpt2"))
    cost = run(settings, tmp_path).result["cost"]
    guess = estimate(settings, tmp_path)
    assert guess.seconds == pytest.approx(guess.examples * cost["seconds"] / cost["examples"])
    assert estimate(config(tiny_folder("llama")), tmp_path).seconds is None


def test_a_tokenizer_that_is_not_to_be_had_is_replaced_by_counting_characters(tmp_path):
    settings = config(tmp_path / "nowhere")
    gauge = open_gauge(settings.model, load_method(settings).plan(True))
    assert (gauge.counted, gauge.kind) == ("as four characters each", "causal")


def test_the_command_line_estimates_without_calling_anything(tiny_folder, tmp_path):
    file = tmp_path / "c.yaml"
    options = {"url": "http://127.0.0.1:9"}  # nobody is there
    settings = config(
        tiny_folder("gpt2"), model={"backend": "vllm", "name": str(tiny_folder("gpt2")), "options": options}
    )
    file.write_text(to_yaml(settings))
    answer = CliRunner().invoke(app, ["run", str(file), "--dry-run", "--json", "--runs", str(tmp_path)])
    assert json.loads(answer.stdout)["train_queries"] == 38  # 2 screened, 9 generations of 4
    assert "tokens up" in CliRunner().invoke(app, ["run", str(file), "--dry-run", "--runs", str(tmp_path)]).stdout
    assert not list(tmp_path.glob("*/config.yaml"))


def test_the_search_stops_before_the_ceiling_and_is_saved(tiny_folder, tmp_path):
    evaluation = {"rows": 10, "also_test": {"sst2": None}}
    free = tune(config(tiny_folder("gpt2"), evaluation=evaluation)).result
    ceiling = 0.6 * free["price"]["search"] + free["price"]["test"]
    price = {"up": 2.0, "down": 5.0, "ceiling": ceiling}
    settings = config(tiny_folder("gpt2"), price=price, evaluation=evaluation)
    outcome = run(settings, tmp_path)
    assert 0.7 * ceiling < total(outcome.result) <= ceiling
    assert 4 <= outcome.result["cost"]["train_queries"] < 40
    assert (outcome.folder / "prompt.safetensors").exists()


@pytest.mark.parametrize("method", ["black-box", "hard-prompt"])
def test_a_raised_ceiling_goes_on_as_if_the_run_had_never_stopped(method, tiny_folder, tmp_path):
    plain = {"up": 2.0, "down": 5.0}
    free = tune(config(tiny_folder("gpt2"), method={"name": method})).result
    low = 0.6 * free["price"]["search"] + free["price"]["test"]
    stopped = run(config(tiny_folder("gpt2"), method={"name": method}, price={**plain, "ceiling": low}), tmp_path)
    resumed = resume(stopped.folder, ceiling=10.0).result
    assert resumed["cost"]["train_queries"] == free["cost"]["train_queries"] > stopped.result["cost"]["train_queries"]
    again = resume(stopped.folder).result
    assert again["test"] == resumed["test"]
    with pytest.raises(RunError, match="has a budget of 10 ceiling already; 1 is no extension"):
        resume(stopped.folder, ceiling=1.0)


def test_a_ceiling_that_pays_for_nothing_is_refused_with_one_that_would(tiny_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"1e-05 does not pay for one generation and the test: 0\.\d+ would"):
        run(config(tiny_folder("gpt2"), price={"up": 2.0, "ceiling": 1e-5}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_without_a_ceiling_has_none_to_raise(tiny_folder, tmp_path):
    outcome = run(config(tiny_folder("gpt2")), tmp_path)
    with pytest.raises(RunError, match="has no ceiling to extend"):
        resume(outcome.folder, ceiling=1.0)


def test_the_table_shows_money_only_where_something_was_paid(tiny_folder):
    paid, free = tune(config(tiny_folder("gpt2"))).result, tune(config(tiny_folder("gpt2"), price={})).result
    assert [row for row, _ in cost_rows(paid) if "price" in row] == ["price of the search", "price of the test"]
    assert not [row for row, _ in cost_rows(free) if "price" in row]
