"""The runs of a comparison on a Ray cluster come to what they come to on this machine, whatever dies."""

import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import yaml
from ray_nodes import MEMORY, add_node, until

from bbt.cli import main
from bbt.cluster import Resources
from bbt.compare import cluster as cluster_module
from bbt.compare.cluster import RayCluster
from bbt.compare.job import Job, run_cell
from bbt.compare.plan import cells, load_plan
from bbt.compare.work import Watcher, Work, missing
from bbt.errors import ConfigError
from bbt.runs.log import EventLog
from bbt.runs.observer import Observer

pytestmark = [
    # Ray leaves sockets and files of processes that it has ended to the collector.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]


@pytest.fixture
def plan(tmp_path):
    """A small plan with changes, as a file; what its toy does is noted in `tmp_path/notes`."""
    (tmp_path / "notes").mkdir()

    def write(kind="Toy", options=None, **changes):
        own = {"notes": str(tmp_path / "notes"), **(options or {})}
        base = {
            "model": {"backend": f"ray_toy:{kind}", "name": "toy", "options": own},
            "evaluation": {"rows": 20},
            "prompt": {"n_prompt_tokens": 2, "intrinsic_dim": 4, "n_screened": 2},
            "optimizer": {"population_size": 4},
            "budget": {"dev_every": 8},
        }
        tree = {
            "base": base,
            "tasks": {"films": {"task": {"name": "sst2"}}},
            "seeds": [0],
            "budgets": [10],
            "methods": {"cma": {"optimizer": {"name": "cma"}}},
            **changes,
        }
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump(tree, sort_keys=False))
        return path

    return write


class Told(Watcher):
    """Remembers what it was told."""

    def __init__(self):
        self.began_, self.ended_, self.moves = [], [], 0

    def began(self, cell):
        self.began_.append(str(cell))

    def moved(self, cell, done, total):
        self.moves += 1

    def ended(self, cell, failure):
        self.ended_.append(str(cell))


def on_ray(path, runs):
    """The failures of a plan's missing runs on the cluster that this process has joined, and what a watcher heard."""
    told = Told()
    todo, _ = missing(cells(load_plan(path)), runs)
    return Work(runs, RayCluster(), told).do(todo), told


def facts(folder):
    """All that a run has recorded but the time and the memory that it took."""
    events = [dict(event) for event in EventLog(folder / "events.jsonl").events]
    for event in events:
        for key in ("peak_memory_mb", "date"):
            event.pop(key, None)
        for costs in (event.get("ledger"), event.get("cost")):
            for key in [key for key in costs or () if "seconds" in key]:
                del costs[key]
    return events


def assert_as_here(path, runs, here):
    """The runs are those that one process makes without a stop."""
    for cell in cells(load_plan(path)):
        run_cell(Job.of(cell, here), Observer())
    for cell in cells(load_plan(path)):
        assert facts(cell.folder(runs)) == facts(cell.folder(here)), str(cell)


def notes(tmp_path, what):
    return [file.name for file in (tmp_path / "notes").glob(f"{what}-*")]


def test_a_plan_larger_than_the_cluster_comes_to_what_it_comes_to_here(plan, tmp_path, ray_cluster):
    """Ten runs on four CPUs, some for two; a model is loaded once a worker and not once a run."""
    methods = {
        "manual": {"method": {"name": "manual"}},
        "cma": {"optimizer": {"name": "cma"}},
        "random": {"optimizer": {"name": "random"}, "resources": {"cpu": 2, "memory": "100MB"}},
    }
    path = plan(methods=methods, seeds=[0, 1], budgets=[10, 18], resources={"memory": "50MB"})
    assert {str(cell.resources) for cell in cells(load_plan(path))} == {
        "CPU 1, memory 5e+07",
        "CPU 2, memory 1e+08",
    }
    failures, told = on_ray(path, tmp_path / "ray")
    assert failures == []
    assert sorted(told.began_) == sorted(told.ended_) == sorted(map(str, cells(load_plan(path))))
    assert len(notes(tmp_path, "made")) < 10
    assert_as_here(path, tmp_path / "ray", tmp_path / "here")
    assert not list((tmp_path / "ray").glob(".cluster-*"))


def test_without_a_shared_folder_what_a_run_leaves_comes_back(plan, tmp_path, ray_cluster, monkeypatch):
    """No worker sees the mark, as on a machine with other disks. The second budget goes on from what came back."""
    monkeypatch.setattr(cluster_module, "_marked", lambda runs: nullcontext(tmp_path / "nowhere"))
    path = plan(budgets=[10, 18], methods={"cma": {}, "broken": {"data": {"k": 17}}})
    failures, _ = on_ray(path, tmp_path / "ray")
    assert [failure.reason[:24] for failure in failures] == ["bundled sst2 holds seeds"]
    sound = plan(budgets=[10, 18], methods={"cma": {}})
    assert_as_here(sound, tmp_path / "ray", tmp_path / "here")


def test_a_run_that_fails_says_why_and_leaves_its_log(plan, tmp_path, ray_cluster):
    path = plan(methods={"crash": {"model": {"options": {"target": "far"}}}, "manual": {"method": {"name": "manual"}}})
    ((failure,), told) = on_ray(path, tmp_path / "ray")
    log = tmp_path / "ray/films/crash-seed0.log"
    assert f"(all of it: {log})" in failure.reason
    assert "Traceback" in log.read_text()
    assert len(told.ended_) == 2


def test_a_node_killed_in_mid_run_changes_nothing(plan, tmp_path, ray_cluster):
    """Its run goes on from its log on a node that joins."""
    doomed = add_node(ray_cluster, memory=64 * 2**30)
    path = plan(options={"seconds": 0.1}, budgets=[122], resources={"memory": "40GB"})
    log = tmp_path / "ray/films/cma-seed0/events.jsonl"
    events = []

    class Killer(Told):
        def moved(self, cell, done, total):
            super().moved(cell, done, total)
            if self.moves == 2:
                events.append(log.read_bytes().count(b"generation"))
                ray_cluster.remove_node(doomed, allow_graceful=False)
                events.append(add_node(ray_cluster, memory=64 * 2**30))

    told = Killer()
    assert Work(tmp_path / "ray", RayCluster(), told).do(cells(load_plan(path))) == []
    generations, joined = events
    ray_cluster.remove_node(joined, allow_graceful=False)
    assert told.began_ == told.ended_ == ["films/cma-seed0 at 122 queries"]
    assert 0 < generations < 30
    assert len(notes(tmp_path, "made")) == 2
    assert_as_here(plan(budgets=[122]), tmp_path / "ray", tmp_path / "here")


def test_a_worker_out_of_memory_is_given_another_try(plan, tmp_path, ray_cluster, monkeypatch):
    """Ray's own watch over memory ends it; a run that is never content fails, and says what to ask for."""
    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(memory[key].split()[0]) / 2**20 for key in ("MemTotal", "MemAvailable"))
    if free < 8:
        pytest.skip(f"needs 8 GiB of free memory, there are {free:.1f}")
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{(total - free + 2) / total:.3f}")
    node = add_node(ray_cluster, memory=32 * 2**30)
    monkeypatch.setattr(cluster_module, "ATTEMPTS", 2)
    often = {"model": {"options": {"meals": 9}}, "resources": {"memory": "20GiB"}}
    path = plan("Hungry", methods={"once": {}, "often": often}, resources={"memory": "20GiB"})
    (failure,), _ = on_ray(path, tmp_path / "ray")
    assert failure.cell.method == "often"
    assert failure.reason.startswith("ended 2 times before it was done, the last time since its node was out of memory")
    assert len(notes(tmp_path, "ate")) >= 3
    assert_as_here(plan("Hungry", methods={"once": {}}), tmp_path / "ray", tmp_path / "here")
    ray_cluster.remove_node(node, allow_graceful=False)


def driver(path, runs, cluster):
    command = [sys.executable, "-m", "bbt.cli", "compare", str(path), "--runs", str(runs), "--cluster", "auto"]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    # A shell that puts tests into the background has them ignore Ctrl-C, which a child would inherit.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=heard
    )


def alive(tmp_path):
    return [pid for name in notes(tmp_path, "made") if os.path.exists(f"/proc/{(pid := name.rpartition('-')[2])}")]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_driver_that_is_stopped_leaves_nothing_running_and_goes_on(plan, tmp_path, ray_cluster, how):
    path = plan(options={"seconds": 0.1}, budgets=[122])
    log = tmp_path / "ray/films/cma-seed0/events.jsonl"
    stopped = driver(path, tmp_path / "ray", ray_cluster)
    until(lambda: log.is_file() and log.read_bytes().count(b"generation") > 3)
    stopped.send_signal(how)
    said = stopped.communicate()[1]
    if how == signal.SIGINT:
        assert stopped.returncode == 130
        assert "stopped; nothing is lost" in said
    until(lambda: not alive(tmp_path))
    assert log.read_bytes().count(b"generation") < 30
    assert on_ray(path, tmp_path / "ray")[0] == []
    assert_as_here(plan(budgets=[122]), tmp_path / "ray", tmp_path / "here")


def test_more_than_any_node_has_is_refused(plan, tmp_path, ray_cluster):
    with pytest.raises(ConfigError, match=r"films/cma-seed0 at 10 queries asks for CPU 1, GPU 1, but no node"):
        on_ray(plan(resources={"gpu": 1}), tmp_path / "ray")


def test_resources_are_read_and_laid_over_each_other():
    whole = Resources.model_validate({"cpu": 2, "memory": "8GiB"})
    assert (whole.memory, whole.n_threads) == (8 * 2**30, 2)
    half = Resources(gpu=0.5).over(whole)
    assert (half.cpu, half.gpu, half.memory) == (2, 0.5, 8 * 2**30)
    assert Resources(memory="1.5 MB").memory == 1_500_000
    assert Resources(memory="2GiB").memory == MEMORY
    assert half.options()["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "2"
    for wrong in ({"memory": "much"}, {"memory": "8XB"}, {"gpu": 1.5}, {"cpu": -1}, {"gpus": 1}):
        with pytest.raises(ValueError, match="1 validation error"):
            Resources.model_validate(wrong)


def test_without_ray_one_line_names_the_extra(plan, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    for arguments in (
        ["compare", str(plan()), "--runs", str(tmp_path / "runs"), "--cluster", "auto"],
        ["run", str(alone(tmp_path)), "--runs", str(tmp_path / "runs")],
    ):
        monkeypatch.setattr(sys, "argv", ["bbt", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 2
        assert capsys.readouterr().err == "bbt: a cluster needs the package ray: pip install 'bbt-prompt[ray]'.\n"


def alone(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"model": {"backend": "ray", "options": {"backend": "bbt.testing:ToyBackend"}}}))
    return path


def test_workers_and_a_cluster_do_not_go_together(plan, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bbt", "compare", str(plan()), "--workers", "2", "--cluster", "auto"])
    with pytest.raises(SystemExit):
        main()
    assert "--workers is for this machine alone" in capsys.readouterr().err
