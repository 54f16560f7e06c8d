"""Parts of the user's own, from the files of examples/extend: named in a config, run, and checked by `bbt.testing`."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from bbt.backend import Backend
from bbt.cli import main
from bbt.config import make_config
from bbt.errors import ConfigError
from bbt.methods import load_method
from bbt.optimizers import Settings, make_optimizer
from bbt.predictor import Predictor
from bbt.runs.observer import watching
from bbt.scoring.losses import load_loss
from bbt.settings import TaskConfig
from bbt.tasks.configured import make_task
from bbt.tasks.metrics import accuracy, load_metric
from bbt.testing import (
    check_backend,
    check_loss,
    check_method,
    check_metric,
    check_optimizer,
    check_reads_prompts_as_words,
    check_task,
)

FOLDER = Path(__file__).parent.parent / "examples" / "extend"


@pytest.fixture
def here(monkeypatch):
    """The folder of the examples, where the user stands."""
    monkeypatch.chdir(FOLDER)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the command adds the folder


@pytest.fixture
def importable(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)


@pytest.fixture
def bbt(here, monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["bbt", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        assert not left.value.code, capsys.readouterr().err
        return capsys.readouterr().out

    return call


def test_every_part_of_a_run_but_its_method_can_be_the_user_s(bbt, tmp_path):
    result = json.loads(bbt("run", "extend.yaml", "--runs", tmp_path, "--json"))
    assert result["task"] == "my_task-TONE"
    assert set(result["test"]["tuned"]) == {"my_metric:balanced_accuracy"}
    assert result["cost"]["train_queries"] == 24
    curve = [line.split(",") for line in (tmp_path / "extend/curve.csv").read_text().splitlines()]
    assert [int(queries) for queries, _ in curve] == [6, 12, 18, 24]
    saved = yaml.safe_load((tmp_path / "extend/config.yaml").read_text())
    assert saved["optimizer"]["name"] == "my_optimizer:Shrinking"
    assert saved["objective"]["loss"] == "my_loss:brier"
    answers = Predictor(tmp_path / "extend").predict(["a joy from start to end"])
    assert set(answers[0]["probabilities"]) == {"negative", "positive"}


def test_a_stopped_run_of_the_user_s_parts_goes_on_bit_for_bit(bbt, tmp_path):
    whole = json.loads(bbt("run", "extend.yaml", "--runs", tmp_path, "--json"))
    log = tmp_path / "extend/events.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    third = [i for i, line in enumerate(lines) if json.loads(line)["event"] == "generation"][2]
    log.write_text("".join(lines[:third]))
    again = json.loads(bbt("resume", tmp_path / "extend", "--json"))
    assert again["test"] == whole["test"]
    losses = [[json.loads(line).get("losses") for line in text] for text in (lines, log.read_text().splitlines())]
    assert losses[0] == losses[1]


def test_a_method_of_the_user_s_runs_with_its_own_settings(bbt, tmp_path):
    result = json.loads(bbt("run", "method.yaml", "--runs", tmp_path, "--json"))
    assert result["label"] == "my_method-BestOf"
    assert result["cost"]["dev_queries"] == 3
    assert result["selected"]["who"] in ("draw 0", "draw 1", "draw 2")


def test_the_user_s_optimizer_keeps_the_contract(importable):
    check_optimizer(lambda settings: make_optimizer("my_optimizer:Shrinking", settings))


def test_the_user_s_loss_and_metric_keep_the_contract(importable):
    check_loss(load_loss("my_loss:brier", 2.0, accuracy))
    check_metric(load_metric("my_metric:balanced_accuracy"))


def test_the_user_s_task_keeps_the_contract(importable):
    import my_task

    check_task(my_task.TONE)
    check_task(make_task(TaskConfig(name="my_task:TONE"), "masked"))


def test_the_user_s_backend_keeps_the_contract(importable, tiny_folder):
    import my_backend

    backend: Backend = my_backend.Cooled(str(tiny_folder("bert")), device="cpu")
    check_backend(backend)
    check_reads_prompts_as_words(backend)


def test_the_user_s_method_keeps_the_contract(here, importable, tmp_path):
    tree = yaml.safe_load((FOLDER / "method.yaml").read_text())
    check_method({**tree, "model": {"backend": "bbt.testing:ToyBackend", "name": "toy"}}, tmp_path)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: make_optimizer("my_optimizer:Shrink", Settings()), "optimizer 'my_optimizer:Shrink' cannot be impo"),
        (
            lambda: make_optimizer("no_such:Thing", Settings()),
            "optimizer 'no_such:Thing' cannot be imported",
        ),
        (lambda: load_metric("accuraci"), "unknown metric 'accuraci'. Did you mean 'accuracy'?.* module:Name"),
        (lambda: watching(["my_loss:brier"], None), "observer 'my_loss:brier' is no subclass of bbt.Observer"),
        (lambda: watching(["json:JSONEncoder"], None), "observer 'json:JSONEncoder' is no subclass of bbt.Observer"),
        (
            lambda: watching(["tensorbord"], None),
            "unknown observer 'tensorbord'. Did you mean 'tensorboard'?.* module:",
        ),
        (
            lambda: load_method(make_config({"method": {"name": "my_task:TONE"}})),
            "method 'my_task:TONE' is no subclass of bbt.methods.Method",
        ),
    ],
)
def test_what_is_no_such_part_is_one_error_for_people(importable, call, said):
    with pytest.raises(ConfigError, match=said):
        call()
