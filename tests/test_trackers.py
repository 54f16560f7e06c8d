"""Trackers, read back from what TensorBoard, Weights & Biases and MLflow keep."""

import json
import logging
import math
import struct
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

import bbt
from bbt.cli import main
from bbt.errors import ConfigError
from bbt.runs.log import EventLog
from bbt.runs.observer import Observer, Observers, watching
from bbt.runs.trackers.base import Tracker, flat

TREE = {
    "task": {"name": "sst2"},
    "model": {"backend": "bbt.testing:ToyBackend", "name": "toy"},
    "budget": {"queries": 60, "dev_every": 20},
    "evaluation": {"rows": 20},
}
PNG = b"\x89PNG\r\n\x1a\n"


def run(folder: Path, *names: str, **changes: object) -> bbt.Outcome:
    return bbt.run(bbt.make_config({**TREE, "observers": names, **changes}), folder)


def told(outcome: bbt.Outcome) -> dict[str, dict[int, float]]:
    """Curves by name, step -> value, as the run's own log has them."""
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    for event in EventLog(outcome.folder / "events.jsonl").events:
        spent = event.get("ledger", {}).get("train_queries")
        if event["event"] == "generation":
            curves["train/loss"][spent] = min(event["losses"])
        if event["event"] == "dev":
            of = dict(zip(event["names"], event["metrics"], strict=True))
            if "manual" in of:
                curves["dev/manual metric"][spent] = of.pop("manual")
            curves["dev/best metric"][spent] = max(of.values())
            curves["cost/examples"][spent] = event["ledger"]["examples"]
    end, result = outcome.result["cost"]["train_queries"], outcome.result
    curves["cost/examples"][end] = result["cost"]["examples"]
    curves["test/tuned/accuracy"][end] = result["test"]["tuned"]["accuracy"]
    return curves


def read_tensorboard(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return found


def test_tensorboard_has_the_curves_the_table_and_the_picture(tmp_path):
    outcome = run(tmp_path, "tensorboard")
    found = read_tensorboard(outcome.folder)
    for name, curve in told(outcome).items():
        points = {event.step: event.value for event in found.Scalars(name)}
        assert points == pytest.approx(curve), name
    text = found.Tensors("result")[0].tensor_proto.string_val[0].decode()
    assert f"| tuned | {100 * outcome.result['test']['tuned']['accuracy']:.2f} |" in text
    assert "- train queries: " in text
    assert "budget.queries: 60" in found.Tensors("config")[0].tensor_proto.string_val[0].decode()
    assert found.Images("convergence")[0].encoded_image_string.startswith(PNG)


def test_tensorboard_drops_what_was_told_before_a_run_was_resumed(tmp_path):
    outcome = run(tmp_path, "tensorboard")
    again = bbt.resume(outcome.folder, queries=120)
    found = read_tensorboard(outcome.folder)
    points = [(event.step, event.value) for event in found.Scalars("train/loss")]
    assert len({step for step, _ in points}) == len(points)
    assert dict(points) == pytest.approx(told(again)["train/loss"])
    assert max(step for step, _ in points) > 60


def wandb_records(file: Path) -> list:
    """The records of an offline run, which its service writes down a moment after the run has ended."""
    for _ in range(200):
        records = list(parsed(file.read_bytes()))
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        time.sleep(0.1)
    raise AssertionError(f"{file} has no end")


def parsed(data: bytes):
    """The records in blocks of 32 KiB, each record in parts with checksum, length and kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    at, record = 7, b""
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Weights & Biases without a network, in a folder of its own."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    return tmp_path / "wandb"


def test_wandb_has_the_curves_the_table_and_the_picture(tmp_path, offline):
    outcome = run(tmp_path, "wandb")
    (file,) = offline.glob("offline-run-*/*.wandb")
    records = wandb_records(file)
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    summary: dict[str, object] = {}
    for record in records:
        for item in record.summary.update:
            summary["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    for name, curve in told(outcome).items():
        axis = "done" if name.startswith("train") else "cost/train queries"
        points = {row[axis]: row[name] for row in rows if name in row}
        last = max(curve)
        assert summary[name] == pytest.approx(curve[last])
        if not name.startswith("test"):
            assert points == pytest.approx({at: v for at, v in curve.items() if at in points})
            assert len(points) >= len(curve) - 1  # the last cost is in the summary alone
    (started,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    config = {item.key: json.loads(item.value_json) for item in started.config.update}
    assert (started.display_name, config["budget.queries"]) == (outcome.folder.name, 60)
    assert [record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"] == [0]
    (table,) = offline.glob("offline-run-*/files/media/table/*.json")
    assert json.loads(table.read_text())["data"][-1][0] == "tuned"
    (picture,) = offline.glob("offline-run-*/files/media/images/convergence*.png")
    assert picture.read_bytes().startswith(PNG)


@pytest.fixture(params=["file", "sqlite"])
def store(request, tmp_path, monkeypatch):
    """The address of an MLflow store."""
    if request.param == "sqlite":
        pytest.importorskip("sqlalchemy", reason="MLflow's databases need SQLAlchemy")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)  # a database's artifacts lie there
    uri = {"file": f"file://{tmp_path}/mlruns", "sqlite": f"sqlite:///{tmp_path}/mlflow.db"}[request.param]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.mark.filterwarnings("default")  # what MLflow says of its own stores
def test_mlflow_has_the_curves_the_table_and_the_picture(tmp_path, store):
    from mlflow import MlflowClient

    outcome = run(tmp_path / "runs", "mlflow")
    client = MlflowClient(store)
    (kept,) = client.search_runs([client.get_experiment_by_name("bbt").experiment_id])
    for name, curve in told(outcome).items():
        points = {metric.step: metric.value for metric in client.get_metric_history(kept.info.run_id, name)}
        assert points == pytest.approx(curve), name
    assert kept.data.params["budget.queries"] == "60"
    assert (kept.info.run_name, kept.info.status) == (outcome.folder.name, "FINISHED")
    files = {Path(file.path).name: file for file in client.list_artifacts(kept.info.run_id)}
    assert set(files) == {"result.md", "convergence.png"}
    folder = Path(kept.info.artifact_uri.removeprefix("file://"))
    assert (folder / "convergence.png").read_bytes().startswith(PNG)
    assert "| tuned | " in (folder / "result.md").read_text()


class Broken(Tracker):
    """A tracker that fails, from some act on."""

    name = "json"  # a package that there is

    def __init__(self, at: str = "begin") -> None:
        super().__init__()
        self.at, self.acts = at, list[str]()

    def act(self, what: str) -> None:
        self.acts.append(what)
        if what == self.at:
            raise OSError("no route to host")

    def begin(self, title, config, folder):
        self.act("begin")

    def log(self, figures, step):
        assert all(math.isfinite(value) for value in figures.values())
        self.act("log")

    def end(self, closing):
        self.act("end" if closing else "stopped")


@pytest.mark.parametrize("at", ["begin", "log", "end"])
def test_a_tracker_that_fails_does_not_cost_the_run(at, tmp_path, caplog):
    tracker = Broken(at)
    watched = bbt.tune(TREE, observer=Observers([tracker]), progress=False)
    alone = bbt.tune(TREE, progress=False)
    assert watched.result["test"] == alone.result["test"]
    assert tracker.acts[-1] == at
    assert tracker.acts.count(at) == 1
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert said == ["the run goes on without json: OSError: no route to host"]


def test_a_run_that_stops_tells_its_tracker_so():
    class Stop(Observer):
        def progressed(self, progress):
            raise KeyboardInterrupt

    tracker = Broken("never")
    with pytest.raises(KeyboardInterrupt):
        bbt.tune(TREE, observer=Observers([tracker, Stop()]), progress=False)
    assert tracker.acts[-1] == "stopped"
    bbt.tune(TREE, observer=tracker, progress=False)  # and the next run may have it again
    assert tracker.acts[-1] == "end"


METHODS = {
    "manual": {"name": "manual"},
    "in-context": {"name": "in-context", "n_orders": 2},
    "prompt-selection": {
        "name": "prompt-selection",
        "by": "dev",
        "templates": ["{prompt} {text} {mask}", "{mask} {text}"],
    },
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_s_run_is_tracked(method, tmp_path):
    tree = {key: value for key, value in TREE.items() if key != "budget"}
    outcome = bbt.run(bbt.make_config({**tree, "method": METHODS[method], "observers": ["tensorboard"]}), tmp_path)
    found = read_tensorboard(outcome.folder)
    assert found.Scalars("test/tuned/accuracy")[0].value == pytest.approx(outcome.result["test"]["tuned"]["accuracy"])


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_one_line_that_names_the_extra(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"the observer {name} needs .*pip install 'bbt-prompt\[{name}\]'"):
        watching([name], None)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**TREE, "observers": [name]}))
    monkeypatch.setattr(sys, "argv", ["bbt", "run", str(config), "--runs", str(tmp_path / "runs")])
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr().err
    assert (left.value.code, said.count("\n")) == (2, 1)
    assert f"bbt-prompt[{name}]" in said
    assert not list((tmp_path / "runs").glob("*"))


def test_a_config_has_dotted_keys():
    assert flat({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}


def test_the_how_to_page_s_own_tracker_is_told_all(capsys):
    page = (Path(__file__).parents[1] / "docs" / "how-to" / "trackers.md").read_text()
    names: dict[str, type[Tracker]] = {}
    exec(page.split("```python\n")[-1].split("```")[0], names)
    bbt.tune(TREE, observer=names["Printed"](), progress=False)
    said = capsys.readouterr().out
    assert said.startswith("begun: sst2-black-box-seed0\n")
    assert "'train/loss': " in said
    assert "| tuned | " in said
