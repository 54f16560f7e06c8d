"""A search that waits for no straggler is replayed from its log, and spends what its budget says."""

import threading
import time

import numpy as np
import pytest
from test_tuner import SPACE, TRAIN, D, dev_names, losses_of, squared_distance
from toy import TASK, shared_config, toy_scorer

from bbt import api
from bbt.backend import Traffic
from bbt.errors import ConfigError, RunError
from bbt.optimizers import Settings, make_optimizer
from bbt.runs.log import EventLog
from bbt.scoring.judge import Judge
from bbt.scoring.ledger import Ledger
from bbt.scoring.objective import Objective
from bbt.search.asynchronous import AsynchronousTuner
from bbt.search.schedule import Schedule
from bbt.testing import ToyBackend

SECTIONS = {
    "prompt": {"n_prompt_tokens": 2, "intrinsic_dim": 4, "n_screened": 2},
    "optimizer": {"population_size": 4, "asynchronous": True},
    "budget": {"queries": 42, "dev_every": 8},
}


class Straggling(ToyBackend):
    """The first candidate takes `seconds`, every other one a hundredth of a second."""

    def __init__(self, seconds=0.0, **options):
        super().__init__(**options)
        self.seconds, self.first = seconds, threading.Lock()

    def label_scores(self, prompts, encoded):
        straggles = len(prompts) == 1 and encoded.n_examples == len(TRAIN) and self.first.acquire(blocking=False)
        time.sleep(self.seconds if straggles else 0.01)
        return super().label_scores(prompts, encoded)


def search(backend=None, log=None, optimizer="cma", population=6, ledger=None, **schedule):
    backend, ledger = backend or Straggling(), ledger or Ledger()
    return AsynchronousTuner(
        make_optimizer(optimizer, Settings(intrinsic_dim=D, population_size=population, seed=5)),
        SPACE,
        Objective(toy_scorer(backend, TRAIN, ledger), squared_distance, ledger),
        Judge(toy_scorer(backend, (0.5, 1.0, 2.0), ledger), TASK, ledger),
        ledger,
        log or EventLog(),
        Schedule(**{"budgets": (60,), "population_size": population, "dev_every": 20, **schedule}),
    )


def numbers(log):
    return [event["numbers"] for event in log.of("generation")]


@pytest.mark.parametrize("optimizer", ["cma", "cma-separable", "random"])
def test_it_finds_what_it_is_to_find_and_its_log_replays_it_without_a_query(tmp_path, optimizer):
    log = EventLog(tmp_path / "events.jsonl")
    whole = search(log=log, optimizer=optimizer)
    best = whole.run()
    assert min(losses_of(log)) < losses_of(log)[0]
    assert sorted(number for some in numbers(log) for number in some) == list(range(60))
    backend = ToyBackend()
    again = search(backend, EventLog(tmp_path / "events.jsonl"), optimizer)
    replayed = again.run()
    assert backend.n_calls == 0
    assert replayed.who == best.who
    np.testing.assert_array_equal(replayed.prompt, best.prompt)
    assert again.ledger.snapshot() == whole.ledger.snapshot()


@pytest.mark.parametrize("kept", [2, 5, 9])
def test_a_search_that_was_stopped_goes_on_with_those_that_were_under_way(tmp_path, kept):
    path = tmp_path / "events.jsonl"
    whole = EventLog(path)
    search(Straggling(0.2), whole).run()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:kept]))
    log = EventLog(path)
    search(log=log).run()
    assert path.read_text().startswith("".join(lines[:kept]))
    assert sorted(number for some in numbers(log) for number in some) == list(range(60))
    assert dev_names(log) == dev_names(whole)


def test_a_straggler_stops_no_generation():
    log, start = EventLog(), time.monotonic()
    search(Straggling(1.5), log, budgets=(18,), baselines=False).run()
    assert 0 not in numbers(log)[0]
    assert 0 in numbers(log)[-1]
    first = log.of("generation")[0]["ledger"]["seconds"]
    assert first < 1.0 < 1.5 <= time.monotonic() - start


def test_an_extension_goes_on_from_where_the_first_budget_ended(tmp_path):
    """Where a budget ends nothing is left over, so that an extended search is the one of the larger budget."""
    log = EventLog(tmp_path / "events.jsonl")
    search(log=log, budgets=(30,)).run()
    assert sorted(number for some in numbers(log) for number in some) == list(range(30))
    lines = (tmp_path / "events.jsonl").read_text()
    longer = EventLog(tmp_path / "events.jsonl")
    search(log=longer, budgets=(30, 63)).run()
    assert (tmp_path / "events.jsonl").read_text().startswith(lines)
    assert len(numbers(longer)) == 10


def test_what_an_early_end_leaves_under_way_is_counted(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    stopped = {"patience": 1, "dev_every": 6, "budgets": (600,)}
    ended = search(ToyBackend(target=-50.0), log, **stopped)
    ended.run()
    (left,) = log.of("left")
    told = 6 * len(log.of("generation"))
    assert told < left["ledger"]["train_queries"] <= told + 3
    assert ended.ledger.examples == 3 * ended.ledger.train_queries + 3 * ended.ledger.dev_queries
    again = search(
        ToyBackend(target=-50.0), EventLog(tmp_path / "events.jsonl"), patience=1, dev_every=6, budgets=(600,)
    )
    again.run()
    assert again.ledger.snapshot() == ended.ledger.snapshot()


def test_what_crosses_a_wire_is_counted_once_where_calls_overlap():
    class Wired(Straggling):
        def __init__(self):
            super().__init__()
            self.traffic = Traffic()

        def label_scores(self, prompts, encoded):
            scores = super().label_scores(prompts, encoded)
            self.traffic.bytes_up += 10 * len(prompts)
            self.traffic.tokens_up += 7 * len(prompts)
            return scores

    backend = Wired()
    done, start = search(backend), time.perf_counter()
    done.run()
    elapsed = time.perf_counter() - start
    assert done.ledger.bytes_up == backend.traffic.bytes_up
    assert done.ledger.tokens_up == backend.traffic.tokens_up
    assert done.ledger.train_queries == 60
    assert done.ledger.backend_seconds <= elapsed  # it goes on while the log is written, which is not the search's time


def test_a_changed_candidate_is_noticed(tmp_path):
    path = tmp_path / "events.jsonl"
    search(log=EventLog(path)).run()
    with pytest.raises(RunError, match="cannot replay event"):
        search(log=EventLog(path), optimizer="random").run()


def test_an_error_of_the_backend_ends_the_search():
    class Broken(ToyBackend):
        def label_scores(self, prompts, encoded):
            raise ConfigError("broken")

    with pytest.raises(ConfigError, match="broken"):
        search(Broken(), baselines=False).run()


def config(**changes):
    toy = {"backend": "bbt.testing:ToyBackend", "name": "toy"}
    return shared_config({"model": toy, "evaluation": {"rows": 20}, **SECTIONS, **changes})


def test_a_run_is_asynchronous_where_its_config_says_so(tmp_path):
    done = api.run(config(name="run"), tmp_path)
    log = EventLog(tmp_path / "run/events.jsonl")
    assert len(numbers(log)) == 10
    again = api.resume(tmp_path / "run")
    assert again.result["test"] == done.result["test"]
    assert again.result["cost"] == done.result["cost"]


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({"name": "zeroth-order"}, "ZerothOrder must be told of its whole population; cma, cma-separable and random"),
        ({"name": "TwoPointsDE"}, "Nevergrad must be told of its whole population"),
        ({"name": "cma", "step_size_rule": "tpa"}, "goes with step_size_rule: csa, not with tpa"),
    ],
)
def test_an_optimizer_that_does_not_allow_it_is_refused(optimizer, message):
    with pytest.raises(ConfigError, match=message):
        api.tune(config(optimizer={**SECTIONS["optimizer"], **optimizer}), progress=False)
