"""Run folders and saved prompts of version 0.1, made by its own code (commit 40819c2), still load.

tests/data/v0.1 holds two runs of 40 queries: `minilm`, on the bundled model as it was then, and `toy`, by an optimizer
and on a backend that do not change.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from bbt.api import resume
from bbt.cli import main
from bbt.config import read_run_config
from bbt.errors import PromptError, RunError
from bbt.methods import load_method
from bbt.predictor import Predictor
from bbt.prompts import SoftPrompt

DATA = Path(__file__).parent / "data" / "v0.1"


@pytest.fixture
def runs(tmp_path):
    """A copy of the run folders."""
    return shutil.copytree(DATA, tmp_path / "runs")


def events(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def losses(folder):
    return [event["losses"] for event in events(folder) if event["event"] == "generation"]


@pytest.mark.parametrize("name", ["minilm", "toy"])
def test_its_config_means_what_it_meant(name):
    config = read_run_config(DATA / name)
    assert (config.name, config.seed, config.data.k, config.calibration) == (name, 0, 2, "none")
    own, sections = load_method(config).tree()
    assert own == {"n_words": 128}  # none are tried where nothing is calibrated
    assert sections["prompt"]["intrinsic_dim"] == 8
    assert sections["optimizer"]["name"] == {"minilm": "cma-separable", "toy": "random"}[name]
    assert sections["budget"] == {"queries": 40, "dev_every": 20, "patience": None}


@pytest.mark.parametrize("path", ["toy", "toy/prompt.safetensors"])
def test_its_prompt_predicts_as_it_was_tested(path, runs):
    predictor = Predictor(runs / path)
    answers = predictor.predict(["1.5", "a joy from start to end"])
    assert {tuple(answer["probabilities"]) for answer in answers} == {("negative", "positive")}
    prompt = predictor.classifier.prompt
    assert prompt.provenance["packages"]["bbt-prompt"] == "0.1.0"
    assert prompt.biases is None


@pytest.mark.parametrize("name", ["minilm", "toy"])
def test_show_prints_what_it_came_to(name, runs, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bbt", "show", str(runs / name)])
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr()
    assert not left.value.code, said.err
    result = json.loads((runs / name / "result.json").read_text())
    assert f"{100 * result['test']['tuned']['accuracy']:.2f}" in said.out
    assert f"selected: {result['selected']['who']}" in said.out
    assert (runs / name / "convergence.png").is_file()


def test_an_unfinished_run_goes_on_to_where_it_came_then(runs):
    folder = runs / "toy"
    lines = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    third = [i for i, event in enumerate(events(folder)) if event["event"] == "generation"][2]
    (folder / "events.jsonl").write_text("".join(lines[: third + 1]))
    for file in ("result.json", "prompt.safetensors"):
        (folder / file).unlink()
    outcome = resume(folder)
    np.testing.assert_allclose(losses(folder), losses(DATA / "toy"), rtol=1e-6)  # the last bits are the machine's
    before = json.loads((DATA / "toy" / "result.json").read_text())
    assert outcome.result["test"] == before["test"]
    assert outcome.result["selected"]["who"] == before["selected"]["who"]
    assert outcome.result["cost"]["examples"] == before["cost"]["examples"]
    now, then = (SoftPrompt.load(path / "prompt.safetensors").embeddings for path in (folder, DATA / "toy"))
    np.testing.assert_allclose(now, then, rtol=1e-6)


def test_a_finished_run_is_extended(runs):
    outcome = resume(runs / "toy", queries=60)
    assert outcome.result["cost"]["train_queries"] == 60
    assert losses(runs / "toy")[: len(losses(DATA / "toy"))] == losses(DATA / "toy")


def test_a_model_whose_weights_have_changed_is_refused_in_one_line(runs):
    with pytest.raises(PromptError, match="was tuned for") as refused:
        Predictor(runs / "minilm")
    assert "\n" not in str(refused.value)
    with pytest.raises(RunError, match=r"cannot replay event 0 .* model was '0d8682ec8b6d', is now") as refused:
        resume(runs / "minilm")
    assert "\n" not in str(refused.value)
