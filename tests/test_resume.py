"""The run that is killed and resumed is the run that was never stopped, bit for bit: the real command, on a model."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

from bbt.api import resume, run
from bbt.config import make_config
from bbt.errors import RunError
from bbt.prompts.soft import SoftPrompt

BUDGET, EXTENDED = 205, 305  # 5 go to screening, so that both end with a dev check every 50


def settings(model, queries):
    return {
        "name": "run",
        "seed": 2,
        "task": {"name": "sst2"},
        "data": {"seed": 13},
        "model": {"name": str(model), "options": {"precision": "fp32", "device": "cpu"}},
        "prompt": {"n_prompt_tokens": 3, "intrinsic_dim": 20, "n_screened": 5},
        "optimizer": {"population_size": 5},
        "budget": {"queries": queries, "dev_every": 50},
        "selection": {"n_best": 2, "baselines": False},  # so that a tuned prompt is compared
    }


@pytest.fixture(scope="module")
def model(tiny_folder):
    return tiny_folder("bert")


@pytest.fixture(scope="module")
def uninterrupted(model, tmp_path_factory):
    """Folders of runs that were left in peace, by their budget."""
    root = tmp_path_factory.mktemp("uninterrupted")
    return {queries: run(make_config(settings(model, queries)), root).folder for queries in (BUDGET, EXTENDED)}


def start(*arguments, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "bbt.cli", *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors


def n_events(folder):
    path = folder / "events.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def stop(process, how, folder, after_events, delay):
    """Send a signal a moment after the log has grown to so many events; returns what was said."""
    deadline = time.monotonic() + 120
    while n_events(folder) < after_events:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(delay)
    process.send_signal(how)
    return process.communicate(timeout=60)[1]


def facts(folder):
    """All of a run that must not depend on how often it was stopped."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    timeless = {"train_queries", "dev_queries", "examples", "bytes_up", "bytes_down"}

    def kept(event):
        ledger = {key: value for key, value in event.get("ledger", {}).items() if key in timeless}
        return {key: value for key, value in event.items() if key not in ("ledger", "packages", "commit")} | ledger

    steps = [kept(event) for event in events if event["event"] not in ("start", "extend", "result")]
    result = json.loads((folder / "result.json").read_text())
    prompt = SoftPrompt.load(folder)
    counts = {key: result["cost"][key] for key in timeless}
    return steps, result["test"], result["selected"], counts, prompt.embeddings.tobytes(), prompt.provenance


def assert_same(folder, reference):
    for ours, expected in zip(facts(folder), facts(reference), strict=True):
        assert ours == expected


def test_a_run_stopped_at_any_moment_goes_on_bit_for_bit(model, uninterrupted, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(settings(model, BUDGET)))
    folder, chance = tmp_path / "runs" / "run", random.Random(0)
    full = n_events(uninterrupted[BUDGET]) - 1  # without the result
    moments = sorted(chance.sample(range(2, full - 12), 3))

    process = start("run", config, cwd=tmp_path)
    stop(process, signal.SIGKILL, folder, moments[0], chance.random() / 100)
    assert process.returncode == -signal.SIGKILL
    assert moments[0] <= n_events(folder) < full

    process = start("resume", folder, cwd=tmp_path)
    said = stop(process, signal.SIGINT, folder, max(moments[1], n_events(folder) + 1), chance.random() / 100)
    assert process.returncode == 130, said
    assert "bbt resume" in said
    assert "Traceback" not in said

    process = start("resume", folder, cwd=tmp_path)
    stop(process, signal.SIGKILL, folder, max(moments[2], n_events(folder) + 1), chance.random() / 100)
    assert n_events(folder) < full
    assert not (folder / "result.json").exists()

    events = folder / "events.jsonl"
    events.write_bytes(events.read_bytes()[:-7])  # as a power cut leaves it: the last line is torn
    finish(start("resume", folder, cwd=tmp_path))
    assert_same(folder, uninterrupted[BUDGET])
    assert not list(folder.glob("*.partial"))


def test_an_extended_run_has_the_losses_of_one_with_the_larger_budget(uninterrupted, tmp_path):
    folder = shutil.copytree(uninterrupted[BUDGET], tmp_path / "run")
    finish(start("resume", folder, "--budget", EXTENDED, cwd=tmp_path))
    assert_same(folder, uninterrupted[EXTENDED])


def test_the_uninterrupted_runs_searched(uninterrupted):
    steps, *_ = facts(uninterrupted[EXTENDED])
    losses = np.array([step["losses"] for step in steps if step["event"] == "generation"], dtype=float)
    assert losses.shape == ((EXTENDED - 5) // 5, 5)
    assert np.median(losses[-5:]) < np.median(losses[:5])


@pytest.mark.parametrize(
    ("section", "value", "said"),
    [
        (
            "task",
            {"template": "{prompt} {text} {mask} !"},
            r"template was '.*', is now '.* !'",
        ),
        ("prompt", {"alpha": 0.5}, r"settings\.prompt\.alpha was 1\.0, is now 0\.5"),
        ("calibration", "batch", "calibration was 'fitted', is now 'batch'"),
    ],
)
def test_a_run_whose_config_was_edited_is_not_gone_on_with(section, value, said, tmp_path):
    """Old losses are not replayed under a new wording."""
    toy = {"model": {"backend": "toy:ToyBackend", "name": "toy"}, "budget": {"queries": 40}, "evaluation": {"rows": 8}}
    folder = run(make_config(toy), tmp_path).folder
    tree = yaml.safe_load((folder / "config.yaml").read_text())
    tree[section] = {**tree[section], **value} if isinstance(value, dict) else value
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(RunError, match=said):
        resume(folder)


def test_a_portfolio_keeps_the_plan_of_the_budget_that_it_began_with(tmp_path):
    """NGOpt chooses its algorithm by the budget; extended, it goes on with that one, however often it was stopped."""
    toy = {
        "model": {"backend": "toy:ToyBackend", "name": "toy"},
        "optimizer": {"name": "NGOpt", "population_size": 5},
        "prompt": {"n_screened": 1, "intrinsic_dim": 8},
        "evaluation": {"rows": 8},
    }
    at_once = run(make_config({**toy, "name": "a", "budget": {"queries": 60, "dev_every": 30}}), tmp_path).folder
    stopped = shutil.copytree(at_once, tmp_path / "b")
    resume(at_once, queries=120)
    resume(stopped, queries=120)
    events = (stopped / "events.jsonl").read_text().splitlines(keepends=True)
    (stopped / "events.jsonl").write_text("".join(events[:-6]))
    resume(stopped)
    assert facts(stopped) == facts(at_once)
    assert facts(at_once)[3]["train_queries"] == 120
