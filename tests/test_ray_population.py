"""Actors of a Ray cluster score as one process does, whoever of them dies."""

import gc
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import yaml
from ray_nodes import add_node, until
from toy import TASK

from backends import load_backend
from backends.local import LocalBackend
from bbt import api
from bbt.backend import Decoding, DeviceBackend, GradientBackend, HardBackend, RemoteBackend
from bbt.config import make_config
from bbt.errors import BackendError, ConfigError, EndpointError, LabelWordError
from bbt.runs.log import EventLog
from bbt.tasks import Example, Template
from bbt.testing import ToyBackend, check_backend

pytestmark = [
    pytest.mark.usefixtures("ray_cluster"),
    # Ray leaves sockets and files of processes that it has ended to the collector.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]

ROWS = TASK.rows([Example(str(number), 1) for number in (1.5, -0.5, 3)], 2)
WORDS = ("no", "yes")
SMALL = {"cpu": 0.25}


@pytest.fixture
def one_thread():
    """This process computes on as many threads as an actor does: sums of float32 depend on it in their last bits."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture
def crew(tmp_path):
    """A backend of actors that hold a toy; what they do is noted in `tmp_path`."""
    made = []

    def make(kind="Toy", actors=2, wait=True, **options):
        options = {"backend": f"ray_toy:{kind}", "notes": str(tmp_path), "actor": SMALL, "patience": 60, **options}
        made.append(load_backend("ray", model="toy", actors=actors, **options))
        if wait:
            until(lambda: made[-1].n_ready == actors)
        return made[-1]

    yield make
    for backend in made:
        backend.close()


def population(n=12):
    return np.random.default_rng(0).standard_normal((n, 2, 4)).astype(np.float32)


def expected(prompts):
    backend = ToyBackend()
    return backend.label_scores(prompts, backend.encode(ROWS, WORDS))


def notes(folder, what):
    return [file.name for file in folder.glob(f"{what}-*")]


def test_it_keeps_the_contract_of_a_backend(crew):
    check_backend(crew(), WORDS)


def test_candidates_are_shared_out_and_come_back_in_order(crew, tmp_path):
    both = crew(seconds=0.02)
    scores = both.label_scores(population(), both.encode(ROWS, WORDS))
    np.testing.assert_array_equal(scores, expected(population()))
    assert len(notes(tmp_path, "scored")) == 2
    assert both.traffic.bytes_up == population().nbytes
    assert both.traffic.bytes_down == scores.nbytes


def test_what_the_actors_own_backend_exchanges_is_counted_too(crew):
    backend = crew("Remote", at_once=5)
    backend.label_scores(population(), backend.encode(ROWS, WORDS))
    assert isinstance(backend, RemoteBackend)
    assert backend.traffic.bytes_up == 12 * 1000 + population().nbytes
    assert backend.traffic.tokens_up == 12 * 7


def test_what_a_local_model_offers_is_offered_bit_for_bit(tiny_folder, one_thread):
    """Causal, since such a model's last bits depend on the candidates beside one."""
    options = {"model": str(tiny_folder("gpt2")), "precision": "fp32", "device": "cpu", "at_once": 2}
    here, there = LocalBackend(**options), load_backend("ray", backend="local", actors=2, actor=SMALL, **options)
    assert there.info == here.info
    task, words = Template("{prompt} . {text} It was {mask}"), ("bad", "great")
    texts = ("a film", "the plot is bad and the acting is worse , it was slow", "great")
    rows = [task.render(text, "", 2) for text in texts]
    bare = [task.render(text, "", 0) for text in texts]
    written = [Template("{prompt} {source} : {target}").render(text, "", 2, "bad film") for text in texts]
    rng = np.random.default_rng(0)
    soft = rng.standard_normal((5, 2, 32)).astype(np.float32)
    deep = rng.standard_normal((5, 2, 2, 32)).astype(np.float32)
    ids = rng.choice(here.ordinary_ids(), (5, 2))

    def all_of_it(backend):
        encoded, plain, pairs = backend.encode(rows, words), backend.encode(bare, words), backend.encode_pairs(written)
        contexts = backend.encode_contexts(written, 4)
        yield from (encoded.n_examples, encoded.n_tokens, encoded.n_truncated, pairs.n_target_tokens)
        yield backend.label_scores(soft, encoded)
        yield backend.deep_label_scores(deep, encoded)
        yield backend.hidden_stds(deep[:1], encoded)
        yield backend.hard_scores(ids, encoded)
        yield backend.target_log_likelihoods(soft, pairs)
        yield from backend.token_log_likelihoods(plain)
        yield from (found.hidden_states for found in backend.features(plain))
        yield np.array(backend.generate(soft[:1], contexts, Decoding(4)))
        yield np.array(backend.prompt_ids("a good film"))
        yield np.array(
            [backend.prompt_text(ids[0]), repr(backend.plain_text(lambda a, b: task.render(a, b, 2), words))]
        )

    for ours, theirs in zip(all_of_it(there), all_of_it(here), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    before, texts = there.traffic.bytes_down, there.generate(soft[:1], there.encode_contexts(written, 4), Decoding(4))
    assert there.traffic.bytes_down - before == sum(len(text.encode()) for text in texts) > 0
    assert isinstance(there, DeviceBackend)
    assert there.peak_memory_mb() is None
    assert not isinstance(there, GradientBackend)
    there.close()


def test_what_the_toy_does_not_offer_is_not_offered(crew):
    assert not isinstance(crew(actors=1), HardBackend)


def test_an_actor_that_dies_is_replaced_and_its_share_scored_elsewhere(crew, tmp_path, caplog):
    backend = crew("Mortal", deaths=2)
    encoded = backend.encode(ROWS, WORDS)
    np.testing.assert_array_equal(backend.label_scores(population(100), encoded), expected(population(100)))
    assert len(notes(tmp_path, "died")) == 2
    assert "an actor has died and is replaced" in caplog.text
    until(lambda: len(notes(tmp_path, "made")) == 4)
    np.testing.assert_array_equal(backend.label_scores(population(), encoded), expected(population()))


def test_a_share_at_which_one_actor_after_the_other_dies_is_an_error(crew, tmp_path):
    backend = crew("Mortal", actors=1, deaths=99)
    with pytest.raises(BackendError, match="4 actors have died at the same candidates"):
        backend.label_scores(np.full((1, 2, 4), -3, np.float32), backend.encode(ROWS, WORDS))
    assert len(notes(tmp_path, "died")) == 4


def test_a_node_killed_in_mid_run_changes_nothing_and_actors_join(crew, tmp_path, ray_cluster):
    doomed = add_node(ray_cluster, memory=64 * 2**30)
    actor = {"cpu": 1, "memory": "40GB"}  # there is room for one, on that node; for the other when a node is added
    backend = crew(wait=False, actor=actor, seconds=0.05)
    encoded, found = backend.encode(ROWS, WORDS), []
    scoring = threading.Thread(target=lambda: found.append(backend.label_scores(population(60), encoded)))
    scoring.start()
    until(lambda: notes(tmp_path, "scored"))
    before = notes(tmp_path, "scored")
    ray_cluster.remove_node(doomed, allow_graceful=False)
    spare = add_node(ray_cluster, memory=128 * 2**30)  # for both
    scoring.join(60)
    np.testing.assert_array_equal(found[0], expected(population(60)))
    until(lambda: backend.n_ready == 2)
    backend.label_scores(population(60), encoded)
    assert len(set(notes(tmp_path, "scored")) - set(before)) == 2
    backend.close()
    ray_cluster.remove_node(spare, allow_graceful=False)


def test_what_an_actor_is_slow_with_an_idle_one_does_too(crew, tmp_path):
    backend = crew(seconds=0.02)
    encoded = backend.encode(ROWS, WORDS)
    backend.label_scores(population(), encoded)
    stuck = pids(tmp_path)[0]
    os.kill(stuck, signal.SIGSTOP)
    try:
        np.testing.assert_array_equal(backend.label_scores(population(), encoded), expected(population()))
    finally:
        os.kill(stuck, signal.SIGCONT)


def test_errors_of_the_actors_backend_are_its_own(crew):
    with pytest.raises(ConfigError, match=r"unexpected keyword argument 'nonsense'\. Its options: "):
        load_backend("ray", model="toy", backend="bbt.testing:ToyBackend", actors=1, nonsense=1)
    with pytest.raises(ConfigError, match=r"unknown key 'model\.options\.actor\.gpus'.* Did you mean"):
        crew(actor={"gpus": 1})
    with pytest.raises(LabelWordError, match="'not one' is not one token"):
        crew(actors=1).encode(ROWS, ("no", "not one"))


def test_where_no_actor_has_room_the_run_gives_up_after_its_patience(crew):
    with pytest.raises(EndpointError, match="no actor has answered for 1 s; none is ready"):
        crew(actor={"cpu": 64}, patience=1.0)


def tree(**options):
    return {
        "name": "run",
        "model": {"backend": "ray", "name": "toy", "options": {"backend": "ray_toy:Toy", "actor": SMALL, **options}},
        "evaluation": {"rows": 20},
        "prompt": {"n_prompt_tokens": 2, "intrinsic_dim": 4, "n_screened": 2},
        "optimizer": {"population_size": 4},
        "budget": {"queries": 42, "dev_every": 8},
    }


def facts(folder):
    """All that a run has recorded but the time that it took."""
    events = EventLog(folder / "events.jsonl").events
    generations = [(event["candidates"], event["losses"]) for event in events if event["event"] == "generation"]
    (result,) = (event for event in events if event["event"] == "result")
    return generations, result["test"], result["selected"], result["cost"]["examples"], result["cost"]["tokens_up"]


def test_a_driver_killed_and_started_again_ends_as_one_process_does(tmp_path, ray_cluster):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree(seconds=0.05, address=ray_cluster.address)))
    command = [sys.executable, "-m", "bbt.cli", "run", str(tmp_path / "run.yaml"), "--runs", str(tmp_path / "ray")]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = tmp_path / "ray/run/events.jsonl"
    until(lambda: log.is_file() and log.read_bytes().count(b"generation") >= 2)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert b'"result"' not in log.read_bytes()
    api.resume(tmp_path / "ray/run")
    alone = {**tree(), "model": {"backend": "ray_toy:Toy", "name": "toy"}}
    api.run(make_config(alone), tmp_path / "local")
    assert facts(tmp_path / "ray/run") == facts(tmp_path / "local/run")
    gc.collect()  # what came of the run holds its actors, in a circle; the next tests need all places of the nodes


def test_actors_end_with_the_backend(crew, tmp_path):
    crew().close()
    until(lambda: not any(alive(pid) for pid in pids(tmp_path)))


def pids(folder):
    return [int(name.rpartition("-")[2]) for name in notes(folder, "made")]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
