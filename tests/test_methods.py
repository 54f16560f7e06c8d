"""Every method in one protocol: a new one is tested by being listed."""

import json

import pytest
from toy import shared_config

from bbt.api import resume, run, tune
from bbt.build import make_experiment
from bbt.errors import ConfigError, PromptError, RunError
from bbt.methods import METHODS, make_method
from bbt.predictor import Predictor
from bbt.settings import MethodConfig
from bbt.testing import ToyBackend, check_method

TINY = {
    "data": {"k": 4},
    "evaluation": {"rows": 40, "also_test": {"sst2": None}},
    "prompt": {"n_prompt_tokens": 3, "intrinsic_dim": 8, "n_screened": 2, "instruction": "What is it like ?"},
    "optimizer": {"population_size": 4},
    "budget": {"queries": 12, "dev_every": 8},
}
SHORT = {"steps": 3, "dev_every": 2, "batch_size": 4}
SETTINGS: dict[str, dict] = {
    "ensemble": {"n_members": 2},
    "in-context": {"n_orders": 2},
    "feature-mlp": {"hidden_size": 8},
    "feature-bilstm": {"hidden_size": 8, "epochs": 3},
    "prompt-selection": {"templates": ["{text} It was {mask} .", "{mask} : {text}"]},
    **dict.fromkeys(("prompt-tuning", "p-tuning", "adapter", "lora", "bitfit", "model-tuning", "attempt"), SHORT),
    "prefix-tuning": {**SHORT, "projection": True, "projection_size": 8},
    "auto-prompt": {**SHORT, "n_candidates": 3},
}
"""Settings that make a method quick; none: its defaults."""


WITH_SOURCES = ("attempt", "prompt-mixture")


@pytest.fixture(scope="session")
def sources(tiny_folder, tmp_path_factory):
    """Prompts that were tuned on the tiny model before."""
    model = {"name": str(tiny_folder("bert")), "options": {"precision": "fp32", "device": "cpu"}}
    selection = {"baselines": False}
    runs = [shared_config({**TINY, "model": model, "seed": seed, "selection": selection}) for seed in (1, 2)]
    return [str(run(config, tmp_path_factory.mktemp("sources")).folder) for config in runs]


@pytest.fixture(params=METHODS)
def config(request, tiny_folder, sources):
    model = {"name": str(tiny_folder("bert")), "options": {"precision": "fp32", "device": "cpu"}}
    own = {**SETTINGS.get(request.param, {}), **({"sources": sources} if request.param in WITH_SOURCES else {})}
    return shared_config({**TINY, "model": model, "method": {"name": request.param, **own}})


def test_every_method_keeps_the_contract(config, tmp_path):
    check_method(config, tmp_path)


def test_a_method_is_tested_on_other_tasks_too_and_predicts(config, tmp_path):
    outcome = run(config, tmp_path)
    result = outcome.result
    assert result["method"] == config.method.name
    assert result["test_examples"] == 40
    assert result["also_test"]["sst2"] == {**result["test"]["tuned"], "examples": 40}  # the same rows
    texts = ["a joy from start to end", "dull"]
    answers = Predictor(outcome.folder).predict(texts)
    assert [set(row["probabilities"]) for row in answers] == [{"negative", "positive"}] * 2


def test_what_cannot_be_written_is_an_error_of_the_system_and_can_be_saved_again(tmp_path):
    outcome = tune(
        shared_config({"model": {"backend": "bbt.testing:ToyBackend", "name": "toy"}, "method": {"name": "manual"}})
    )
    in_the_way = tmp_path / "prompt.safetensors.partial"
    in_the_way.mkdir()
    with pytest.raises(OSError, match=r"cannot save to .* save again or bbt resume"):
        outcome.save(tmp_path)
    in_the_way.rmdir()
    outcome.save(tmp_path)
    assert (tmp_path / "prompt.safetensors").exists()


def test_an_outcome_in_memory_is_saved_for_a_predictor(config, tmp_path):
    outcome = tune(config)
    outcome.save(tmp_path / "mine")
    texts = ["a joy from start to end"]
    probabilities = Predictor(tmp_path / "mine").predict(texts)[0]["probabilities"]
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert json.loads((tmp_path / "mine/result.json").read_text()) == outcome.result


def test_an_unknown_method_or_setting_names_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown method 'blackbox'\. Did you mean 'black-box'\?"):
        make_method(MethodConfig(name="blackbox"), {}, {})
    with pytest.raises(ConfigError, match=r"config: unknown key 'method\.rank'"):
        make_method(MethodConfig.model_validate({"name": "manual", "rank": 8}), {}, {})


def test_the_test_rows_are_the_same_draw_for_every_seed():
    drawn = [
        make_experiment(shared_config({"seed": seed, "evaluation": {"rows": 10}}), ToyBackend()).split.test
        for seed in (0, 1)
    ]
    everything = make_experiment(shared_config({}), ToyBackend()).split.test
    places = [everything.index(example) for example in drawn[0]]
    assert drawn[0] == drawn[1]
    assert places == sorted(places)
    assert len(set(places)) == 10 < max(places)


def test_a_run_without_a_budget_of_queries_cannot_be_extended(tmp_path):
    toy = {"backend": "bbt.testing:ToyBackend", "name": "toy"}
    outcome = run(shared_config({"name": "m", "model": toy, "method": {"name": "manual"}}), tmp_path)
    with pytest.raises(RunError, match="no budget to extend"):
        resume(outcome.folder, 500)


def test_a_run_that_begins_again_forgets_what_it_had_done(tmp_path):
    toy = {"backend": "bbt.testing:ToyBackend", "name": "toy"}
    folder = run(shared_config({"name": "m", "model": toy, "method": {"name": "manual"}}), tmp_path).folder
    lines = (folder / "events.jsonl").read_text().splitlines()
    (folder / "events.jsonl").write_text(lines[0] + '\n{"event": "dev", "half": "done"}\n')
    resume(folder)
    kinds = [json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines()]
    assert kinds == ["start", "dev", "result"]


def test_another_model_is_refused(config, tmp_path, tiny_folder):
    tune(config).save(tmp_path)
    if (tmp_path / "prompt.safetensors").is_file():
        pytest.skip("a soft prompt knows its own model: tests/test_prompts.py")
    saved = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(saved.replace(str(tiny_folder("bert")), str(tiny_folder("roberta"))))
    with pytest.raises(PromptError, match="was trained on"):
        Predictor(tmp_path)
