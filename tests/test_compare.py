"""A comparison is laid out, run, stopped, resumed and reported."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from bbt.cli.compare import compare
from bbt.compare.finished import read
from bbt.compare.plan import cells, load_plan
from bbt.compare.processes import Processes
from bbt.compare.work import Watcher, Work
from bbt.errors import ConfigError
from bbt.methods import load_method, resolved_tree
from bbt.predictor import Predictor
from bbt.tasks.builtin import builtin_task
from bbt.tasks.configured import test_examples as rows_of

ROOT = Path(__file__).parent.parent
TOY = {"backend": "bbt.testing:ToyBackend", "name": "toy"}
TREE = {
    "base": {
        "model": TOY,
        "evaluation": {"rows": 20},
        "prompt": {"n_prompt_tokens": 2, "intrinsic_dim": 4, "n_screened": 2},
        "optimizer": {"population_size": 4},
        "budget": {"dev_every": 8},
    },
    "tasks": {"films": {"task": {"name": "sst2"}}, "yelp": {"task": {"name": "yelp"}, "data": {"source": "files"}}},
    "seeds": [0, 1],
    "budgets": [8, 16],
    "methods": {"manual": {"method": {"name": "manual"}}, "cma": {"optimizer": {"name": "cma"}}},
}


@pytest.fixture(autouse=True)
def _workers_find_the_toy(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))


@pytest.fixture
def plan(tmp_path):
    """The tree with changes, as a file."""

    def write(**changes):
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump({**TREE, **changes}, sort_keys=False))
        return path

    return write


FILMS = {"films": {"task": {"name": "sst2"}}}


def names(path, folds=None):
    return [str(cell) for cell in cells(load_plan(path), folds)]


def test_small_budgets_and_early_seeds_come_first_and_only_searches_have_budgets(plan):
    assert names(plan(tasks=FILMS)) == [
        "films/manual-seed0",
        "films/cma-seed0 at 8 queries",
        "films/manual-seed1",
        "films/cma-seed1 at 8 queries",
        "films/cma-seed0 at 16 queries",
        "films/cma-seed1 at 16 queries",
    ]


def test_a_task_may_have_its_own_seeds_and_budgets_and_a_budget_be_restricted(plan):
    tasks = {**FILMS, "news": {"task": {"name": "agnews"}, "seeds": [7], "budgets": [12]}}
    found = names(plan(tasks=tasks, only={16: {"seeds": [1], "methods": ["cma"]}}))
    assert [name for name in found if "16" in name] == ["films/cma-seed1 at 16 queries"]
    assert [name for name in found if "news" in name] == ["news/manual-seed7", "news/cma-seed7 at 12 queries"]


def test_a_method_may_be_for_some_tasks_only(plan):
    methods = {**TREE["methods"], "cma": {"optimizer": {"name": "cma"}, "tasks": ["yelp"]}}
    assert not [name for name in names(plan(methods=methods)) if name.startswith("films/cma")]


def test_shots_and_folds_are_axes_of_the_run_s_name_and_config(plan):
    found = cells(load_plan(plan(tasks=FILMS, seeds=[3], budgets=[8], k=[4, 8])), folds=2)
    assert [cell.name for cell in found if cell.method == "cma"] == [
        "cma-k4-seed3-fold0",
        "cma-k4-seed3-fold1",
        "cma-k8-seed3-fold0",
        "cma-k8-seed3-fold1",
    ]
    data, evaluation = found[-1].config.data, found[-1].config.evaluation
    assert (data.k, data.folds, data.fold, evaluation.rows) == (8, 2, 1, 0)


def test_base_file_task_and_method_are_laid_over_each_other(plan, tmp_path):
    (tmp_path / "task.yaml").write_text("task: {name: sst2}\ndata: {k: 8, note: mine}\nprompt: {alpha: 2}\n")
    tasks = {"films": {"config": str(tmp_path / "task.yaml"), "data": {"k": 4}}}
    methods = {"cma": {"optimizer": {"name": "cma"}, "prompt": {"alpha": 3}}}
    config = cells(load_plan(plan(tasks=tasks, methods=methods)))[0].config
    prompt = load_method(config).prompt
    assert (config.data.k, config.data.note, prompt.alpha, prompt.intrinsic_dim) == (4, "mine", 3, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": {}}, r"unknown key 'method'\. Did you mean 'methods'\?"),
        ({"against": ["cmaes"]}, r"unknown method of the plan 'cmaes'\. Did you mean 'cma'\?"),
        ({"only": {8: {"tasks": ["film"]}}}, r"unknown task of the plan 'film'\. Did you mean 'films'\?"),
        ({"methods": {"a": {"method": {"name": "manul"}}}}, r"a on films: .*Did you mean 'manual'\?"),
        ({"methods": {"a": {"optimizr": {}}}}, r"a on films: config: unknown key 'optimizr'"),
        ({"seeds": []}, r"seeds: .*at least 1"),
    ],
)
def test_a_plan_that_cannot_be_is_an_error_before_anything_runs(plan, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_plan(plan(**changes))


def test_what_is_missing_is_run_and_only_that(plan, tmp_path, capsys):
    path, runs = plan(tasks=FILMS), tmp_path / "runs"
    compare(path, runs, workers=2)
    first = capsys.readouterr()
    assert "6 of 6 runs finished" in first.out
    assert "[6/6]" in first.err
    before = {log: log.stat().st_mtime_ns for log in runs.glob("*/*/events.jsonl")}
    compare(path, runs, workers=2)
    again = capsys.readouterr()
    assert again.out == first.out
    assert again.err == ""
    compare(path, runs, pair=("cma", "manual"))
    assert capsys.readouterr().out.startswith("films accuracy: cma at 8 ")
    assert len(before) == 4
    assert before == {log: log.stat().st_mtime_ns for log in runs.glob("*/*/events.jsonl")}


def test_what_fails_is_reported_and_the_others_finish(plan, tmp_path, capsys):
    broken, crash = {"data": {"k": 17}}, {"model": {"options": {"target": "far"}}}
    methods = {"broken": broken, "crash": crash, "manual": {"method": {"name": "manual"}}}
    with pytest.raises(SystemExit) as left:
        compare(plan(tasks=FILMS, methods=methods, seeds=[0]), tmp_path / "runs", workers=2)
    said = capsys.readouterr()
    assert left.value.code == 1
    assert "1 of 5 runs finished" in said.out
    failed = [line for line in said.err.splitlines() if line.startswith("failed:")]
    assert len(failed) == 2  # not tried again with the larger budget
    assert failed[0].startswith("failed: films/broken-seed0 at 8 queries: bundled sst2 holds seeds")
    log = tmp_path / "runs/films/crash-seed0.log"
    assert str(log) in failed[1]
    assert "Traceback" in log.read_text()
    assert "k up to 16" in (tmp_path / "runs/plan.html").read_text()


def test_a_run_of_other_settings_is_not_taken_for_this_plan_s(plan, tmp_path, capsys):
    runs = tmp_path / "runs"
    compare(plan(tasks=FILMS, seeds=[0], budgets=[8]), runs)
    changed = {**TREE["base"], "prompt": {**TREE["base"]["prompt"], "intrinsic_dim": 5}}
    with pytest.raises(SystemExit):
        compare(plan(tasks=FILMS, seeds=[0], budgets=[8], base=changed), runs)
    assert "prompt.intrinsic_dim was 4, is now 5 in the plan. Move it away" in capsys.readouterr().err


def killed_when(path, runs, ready):
    """A comparison in a process of its own, killed as soon as it is ready for that."""
    command = [sys.executable, "-m", "bbt.cli", "compare", str(path), "--runs", str(runs)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not ready() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()


def test_a_killed_comparison_goes_on_as_if_it_had_never_stopped(plan, tmp_path):
    path = plan(tasks=FILMS, seeds=[0], budgets=[2000], methods={"cma": {"optimizer": {"name": "cma"}}})
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    log = broken / "films/cma-seed0/events.jsonl"
    killed_when(path, broken, lambda: log.is_file() and log.read_bytes().count(b"\n") > 20)
    time.sleep(0.5)  # the worker ends with its parent
    lines = log.read_bytes().count(b"\n")
    time.sleep(0.3)
    assert log.read_bytes().count(b"\n") == lines < 500
    compare(path, broken)
    compare(path, whole)
    cell = cells(load_plan(path))[0]
    results = [read(cell, runs).result for runs in (broken, whole)]
    assert results[0]["test"] == results[1]["test"]
    assert results[0]["selected"] == results[1]["selected"]
    assert results[0]["cost"]["examples"] == results[1]["cost"]["examples"]
    assert log.read_bytes().count(b"generation") == (whole / log.relative_to(broken)).read_bytes().count(b"generation")


def test_a_worker_ends_when_its_parent_is_gone(plan, tmp_path):
    cell = cells(load_plan(plan(tasks=FILMS, seeds=[0], budgets=[10**6])))[-1]
    log = cell.folder(tmp_path) / "events.jsonl"
    command = [sys.executable, "-m", "bbt.compare.worker"]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    job = {"config": resolved_tree(cell.config), "folder": str(cell.folder(tmp_path)), "budget": None}
    worker.stdin.write(json.dumps(job) + "\n")
    worker.stdin.flush()
    while not (log.is_file() and b"generation" in log.read_bytes()):
        assert worker.poll() is None
        time.sleep(0.01)
    worker.stdin.close()
    try:
        assert worker.wait(timeout=30) == 1
    finally:
        worker.kill()


def test_a_folder_that_was_left_before_its_config_was_written_is_begun_again(plan, tmp_path):
    left = tmp_path / "runs/films/manual-seed0"
    left.mkdir(parents=True)
    (left / "config.yaml.partial").write_text("half")
    compare(plan(tasks=FILMS, seeds=[0], methods={"manual": {"method": {"name": "manual"}}}), tmp_path / "runs")
    assert sorted(f.name for f in left.parent.iterdir()) == ["manual-seed0"]


def test_the_outcome_is_tested_on_another_task_as_bbt_eval_would(plan, tmp_path, capsys):
    rows = [{"text": f"row {'x' * i}", "label": int(i > 10)} for i in range(30)]
    other = tmp_path / "yelp.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = {"films": {"task": {"name": "sst2"}, "evaluation": {"rows": None, "also_test": {"yelp": str(other)}}}}
    between = {"model": {**TOY, "options": {"manual": 2.0}}}  # long rows are called positive, short ones negative
    path = plan(tasks=tasks, seeds=[0], budgets=[8], base={**TREE["base"], **between})
    compare(path, tmp_path / "runs")
    assert "| method | films accuracy | films → yelp accuracy | mean |" in capsys.readouterr().out
    for cell in cells(load_plan(path)):
        task = builtin_task("yelp", "masked")
        again = Predictor(cell.folder(tmp_path / "runs")).evaluate(task, rows_of(task, other))
        assert read(cell, tmp_path / "runs").result["also_test"]["yelp"] == {**again, "examples": 30}


def test_a_task_with_other_labels_is_refused_before_anything_is_trained(plan, tmp_path, capsys):
    tasks = {"films": {"task": {"name": "sst2"}, "evaluation": {"also_test": {"agnews": None}}}}
    with pytest.raises(SystemExit):
        compare(plan(tasks=tasks, seeds=[0], budgets=[8]), tmp_path / "runs")
    assert "sst2 cannot be tested on agnews" in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*/*/events.jsonl"))


def test_cross_validation_reads_no_test_row_and_names_its_choice(plan, tmp_path, capsys):
    methods = {"near": {"prompt": {"alpha": 1}}, "manual": {"method": {"name": "manual"}}}
    compare(plan(tasks=FILMS, seeds=[0], budgets=[8], methods=methods), tmp_path / "runs", folds=2)
    out = capsys.readouterr().out
    assert "Cross-validation over 2 folds" in out
    assert "| chosen | " in out
    results = [json.loads(f.read_text()) for f in (tmp_path / "runs").glob("*/*/result.json")]
    assert len(results) == 4
    assert all(result["test"]["tuned"] == {} and result["test_examples"] == 0 for result in results)
    assert (tmp_path / "runs/plan-2-fold.md").is_file()


@pytest.mark.parametrize("path", sorted((ROOT / "examples/plans").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_plan_that_is_shipped_can_be_laid_out(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert cells(load_plan(path))


def test_what_a_backend_prints_goes_into_no_comparison_s_way(plan, tmp_path, monkeypatch):
    (tmp_path / "chatty.py").write_text(CHATTY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(tmp_path)]))
    base = {**TREE["base"], "model": {"backend": "chatty:Chatty", "name": "toy"}}
    cell = cells(load_plan(plan(base=base, tasks=FILMS, seeds=[0], budgets=[8])))[1]
    assert Work(tmp_path / "runs", Processes(1), Watcher()).do([cell]) == []
    assert read(cell, tmp_path / "runs") is not None
    broken = cells(load_plan(plan(base={**base, "optimizer": {"population_size": 20}}, tasks=FILMS, seeds=[0])))[1]
    (failure,) = Work(tmp_path / "others", Processes(1), Watcher()).do([broken])
    assert failure.reason.startswith("budget.queries is 8"), "the error is the log's last line, whatever was printed"


CHATTY = """
import os
from bbt.testing import ToyBackend

class Chatty(ToyBackend):
    def label_scores(self, prompts, encoded):
        print("scoring", len(prompts))
        os.write(1, b"from C \\xff\\n")
        return super().label_scores(prompts, encoded)

    def encode(self, *arguments, **named):
        print("encoding")
        return super().encode(*arguments, **named)
"""
