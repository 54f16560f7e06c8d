import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml

from bbt.api import resume, run, tune
from bbt.config import make_config
from bbt.errors import BbtError, ConfigError, RunError
from bbt.files import write_atomically
from bbt.methods import resolved_tree
from bbt.runs.environment import environment
from bbt.runs.folder import RunFolder, read_result, run_summaries
from bbt.runs.log import EventLog, decode_losses, encode_losses
from bbt.testing import ToyBackend

TOY = {
    "name": "toy",
    "model": {"backend": "bbt.testing:ToyBackend", "name": "toy"},
    "prompt": {"n_prompt_tokens": 2, "intrinsic_dim": 4, "scale": "paper"},
    "optimizer": {"population_size": 5},
    "budget": {"queries": 20, "dev_every": 10},
}


def toy_config(**sections):
    return make_config({**TOY, **{k: {**TOY.get(k, {}), **v} for k, v in sections.items()}})


@pytest.fixture
def finished(tmp_path):
    return run(toy_config(), tmp_path).folder


def test_events_are_read_back_as_they_were_written(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    values = np.random.default_rng(0).normal(size=50) * 10.0 ** np.arange(-25, 25)
    for i in range(3):
        log.append({"event": "generation", "i": i, "losses": encode_losses(values)})
    again = EventLog(tmp_path / "events.jsonl")
    assert again.events == log.events
    np.testing.assert_array_equal(decode_losses(again.events[2]["losses"]), values)  # bit for bit


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full, which is a full disk")
def test_a_full_disk_is_named_with_what_to_do(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    log.path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"events.jsonl: .*No space left.*bbt resume {tmp_path}"):
        log.append({"event": "start"})


def test_infinite_losses_survive_json():
    encoded = json.loads(json.dumps(encode_losses(np.array([1.0, np.inf, 0.1])), allow_nan=False))
    np.testing.assert_array_equal(decode_losses(encoded), [1.0, np.inf, 0.1])


@pytest.mark.parametrize("torn", [b'{"event": "gen', b'{"event": "generation"}', b"\xff", b"\0\0\0"])
def test_a_torn_last_line_is_dropped_and_nothing_else(tmp_path, torn):
    path = tmp_path / "events.jsonl"
    whole = b'{"event": "start"}\n{"event": "dev"}\n'
    path.write_bytes(whole + torn)
    log = EventLog(path)
    assert [event["event"] for event in log.events] == ["start", "dev"]
    assert path.read_bytes() == whole + torn, "reading alone changes nothing"
    log.append({"event": "generation"})
    assert path.read_bytes() == whole + b'{"event": "generation"}\n'
    assert [event["event"] for event in EventLog(path).events] == ["start", "dev", "generation"]


@pytest.mark.parametrize("damage", [b'{"event": "gen\n', b"\xff\xfe\n", b"\n"])
def test_a_damaged_line_before_the_last_is_an_error(tmp_path, damage):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "start"}\n' + damage + b'{"event": "dev"}\n')
    with pytest.raises(RunError, match=r"events\.jsonl is damaged before its last line"):
        EventLog(path)


def test_recall_gives_events_in_order_then_nothing(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "start", "model": "m"}\n{"event": "extend"}\n{"event": "result"}\n{"event": "dev"}\n')
    log = EventLog(path)
    assert log.recall("start", model="m") == {"event": "start", "model": "m"}
    assert log.recall("dev") == {"event": "dev"}
    assert log.recall("dev") is None


@pytest.mark.parametrize("expected", [("dev", {}), ("start", {"model": "other"}), ("start", {"seed": 1})])
def test_recall_refuses_what_was_not_recorded(tmp_path, expected):
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "start", "model": "m"}\n')
    kind, facts = expected
    with pytest.raises(RunError, match=r"cannot replay event 0 of .*start a new run"):
        EventLog(path).recall(kind, **facts)


def test_two_runs_never_share_a_folder(tmp_path):
    folders = [RunFolder.create(tmp_path / "runs", "name", "seed: 0\n") for _ in range(3)]
    assert [folder.path.name for folder in folders] == ["name", "name-2", "name-3"]


def test_a_run_is_held_by_one_handle_at_a_time(tmp_path):
    folder = RunFolder.create(tmp_path, "name", "seed: 0\n")
    with pytest.raises(RunError, match="in use by another process"):
        RunFolder(folder.path)
    other = f"from pathlib import Path; from bbt.runs.folder import RunFolder; RunFolder(Path({str(folder.path)!r}))"
    refused = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True)
    assert "RunError" in refused.stderr
    assert "in use by another process" in refused.stderr
    assert RunFolder(folder.path, hold=False).path == folder.path, "reading needs no lock"
    folder.close()
    RunFolder(folder.path).close()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="is not a run folder"):
        RunFolder(tmp_path)


def test_an_atomic_write_replaces_the_whole_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "old and long")
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_folder_holds_config_events_prompt_and_result(finished):
    assert {p.name for p in finished.iterdir()} >= {
        "config.yaml",
        "events.jsonl",
        "prompt.safetensors",
        "result.json",
    }
    assert yaml.safe_load((finished / "config.yaml").read_text()) == resolved_tree(toy_config())
    folder = RunFolder(finished)
    result = json.loads((finished / "result.json").read_text())
    assert read_result(folder) == result
    assert result["cost"]["train_queries"] == 20
    assert set(result["test"]) == {"manual", "manual calibrated", "untuned", "tuned"}
    start = folder.log.of("start")[0]
    assert start["packages"]["numpy"] == np.__version__
    assert start["info"]["hidden_size"] == 4
    assert start["python"] == environment()["python"]


def test_an_unfinished_run_says_how_to_go_on(tmp_path):
    folder = RunFolder.create(tmp_path, "name", "seed: 0\n")
    folder.log.append({"event": "generation", "ledger": {"train_queries": 40}})
    with pytest.raises(RunError, match=r"has not finished \(40 queries so far\): bbt resume .*name"):
        read_result(folder)
    assert run_summaries(tmp_path) == [("name", "not finished")]


def test_runs_are_summed_up_with_their_outcome(finished):
    ((name, about),) = run_summaries(finished.parent)
    assert name == "toy"
    assert "sst2 · toy · 20 queries · test accuracy" in about


def edited(folder, **sections):
    """The run's config with other values."""
    path = folder / "config.yaml"
    tree = yaml.safe_load(path.read_text())
    for section, values in sections.items():
        tree[section] = {**tree[section], **values} if isinstance(values, dict) else values
    path.write_text(yaml.safe_dump(tree))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"model": {"options": {"target": 2.0}}}, "model was 'toy-1.0', is now 'toy-2.0'"),
        ({"data": {"seed": 1}}, "rows was"),
        ({"task": {"name": "agnews"}}, "rows was"),
        ({"optimizer": {"sigma0": 0.9}}, r"settings\.optimizer\.sigma0 was 1\.0, is now 0\.9"),
        ({"seed": 1}, "rows was"),
        ({"selection": {"n_best": 3}}, r"settings\.selection\.n_best was 1, is now 3"),
        ({"selection": {"baselines": False}}, r"settings\.selection\.baselines was True, is now False"),
    ],
)
def test_a_changed_model_data_or_search_is_not_replayed(finished, change, what):
    edited(finished, **change)
    with pytest.raises(RunError, match=f"cannot replay event .*{what}"):
        resume(finished)


def test_resuming_a_finished_run_changes_nothing(finished):
    before = json.loads((finished / "result.json").read_text())
    outcome = resume(finished)
    assert outcome.result["test"] == before["test"]
    assert outcome.result["selected"] == before["selected"]
    assert outcome.result["cost"]["train_queries"] == 20


def test_a_budget_cannot_shrink(finished):
    with pytest.raises(RunError, match="has a budget of 20 queries already; 10 is no extension"):
        resume(finished, 10)
    assert resume(finished, 30).result["cost"]["train_queries"] == 30
    with pytest.raises(RunError, match="has a budget of 30"):
        resume(finished, 25)


@pytest.mark.parametrize(
    "sections",
    [
        {"optimizer": {"name": "nonesuch"}},
        {"optimizer": {"name": "zeroth-order", "population_size": 5}},
        {"task": {"name": "nonesuch"}},
        {"data": {"k": 17}},
        {"prompt": {"init": "text"}},
        {"prompt": {"projection": "orthonormal", "intrinsic_dim": 9}},
    ],
)
def test_a_config_that_cannot_run_leaves_no_folder(tmp_path, sections):
    with pytest.raises(BbtError):
        run(toy_config(**sections), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_screened_initial_prompts_cost_queries_and_are_recalled(tmp_path):
    config = toy_config(prompt={"n_screened": 6})
    outcome = run(config, tmp_path)
    assert outcome.folder is not None
    folder = RunFolder(outcome.folder)
    (screen,) = folder.log.of("screen")
    assert len(screen["losses"]) == screen["ledger"]["train_queries"] == 6
    folder.close()
    again = resume(outcome.folder)
    np.testing.assert_array_equal(again.classifier.prompt.embeddings, outcome.classifier.prompt.embeddings)
    assert again.result["cost"]["examples"] == outcome.result["cost"]["examples"]


def test_a_backend_that_cannot_be_imported_is_named():
    with pytest.raises(ConfigError, match=r"backend 'bbt\.testing:Nonesuch' cannot be imported"):
        run(toy_config(model={"backend": "bbt.testing:Nonesuch"}))


@pytest.mark.parametrize(
    "name", ["../../x", "..", ".", "", "/tmp/x", "a/../../x", "a//b", "a/", "a\\b", "a\nb", "a\0b"]
)
def test_a_name_never_leads_out_of_the_runs_folder(tmp_path, name):
    runs = tmp_path / "deep" / "runs"
    with pytest.raises(ConfigError, match=r"is no name of a run folder in .*runs"):
        RunFolder.create(runs, name, "seed: 0\n")
    assert not list(tmp_path.iterdir())


def test_a_name_of_several_parts_is_listed_and_leaves_nothing_behind_if_it_cannot_run(tmp_path):
    outcome = run(make_config({**TOY, "name": "a/b"}), tmp_path)
    assert outcome.folder == tmp_path / "a" / "b"
    assert [name for name, _ in run_summaries(tmp_path)] == ["a/b"]
    with pytest.raises(BbtError):
        run(make_config({**TOY, "name": "c/d", "optimizer": {"name": "nonesuch"}}), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_every_file_of_a_run_has_the_mode_that_new_files_have(finished):
    (finished / "new").touch()
    names = ("config.yaml", "events.jsonl", "prompt.safetensors", "result.json", "new")
    assert len({(finished / name).stat().st_mode for name in names}) == 1


def test_half_a_surrogate_pair_is_written_as_a_question_mark(tmp_path):
    write_atomically(tmp_path / "file", "so \ud83d good")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "so ? good"


def test_a_budget_that_pays_for_no_generation_is_refused_before_a_query(tmp_path):
    with pytest.raises(ConfigError, match=r"budget.queries is 20, but screening 16 initial prompts .* need 21 queries"):
        run(toy_config(prompt={"n_screened": 16}), tmp_path)
    assert not list(tmp_path.iterdir())
    assert run(toy_config(prompt={"n_screened": 13}), tmp_path).result["cost"]["train_queries"] == 18


def test_peak_memory_is_the_device_s_where_the_backend_tells_it(tmp_path):
    class OnDevice(ToyBackend):
        def peak_memory_mb(self):
            return 12.5

    result = tune(toy_config(), OnDevice()).result
    assert (result["peak_memory_mb"], result["peak_memory_of"]) == (12.5, "cpu")
    result = tune(toy_config(), ToyBackend()).result
    assert result["peak_memory_mb"] > 50
    assert result["peak_memory_of"] == "process"


@pytest.fixture
def slow_disk(monkeypatch):
    """A disk on which nothing arrives before the event is set; the list grows with what has."""
    arrives, there, sync = threading.Event(), [], os.fsync

    def wait(file):
        arrives.wait(10)
        sync(file)
        there.append(file)

    monkeypatch.setattr(os, "fsync", wait)
    return arrives, there


def test_an_event_is_in_the_file_at_once_and_on_disk_before_the_next(tmp_path, slow_disk):
    arrives, there = slow_disk
    log = EventLog(tmp_path / "events.jsonl")
    log.append({"event": "start"})
    assert EventLog(log.path).events == [{"event": "start"}]
    assert not there
    later = threading.Timer(0.2, arrives.set)
    later.start()
    log.append({"event": "dev"})
    assert len(there) >= 1, "the next one waits for it"
    log.settle()
    assert len(there) == 2


def test_a_folder_is_closed_when_its_log_is_on_disk(tmp_path, slow_disk):
    arrives, there = slow_disk
    with RunFolder.create(tmp_path, "name", "seed: 0\n") as folder:
        folder.log.append({"event": "start"})
        threading.Timer(0.2, arrives.set).start()
    assert len(there) == 1


def test_a_disk_that_fails_later_is_named_before_anything_else_is_written(tmp_path, monkeypatch):
    def fail(file):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    log = EventLog(tmp_path / "events.jsonl")
    log.append({"event": "start"})
    with pytest.raises(OSError, match=r"cannot write to .*events\.jsonl: .*Input/output error.*bbt resume"):
        log.append({"event": "dev"})
    assert [event["event"] for event in EventLog(log.path).events] == ["start"]
