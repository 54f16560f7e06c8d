"""Prompts of words: their spaces, the memory of what was scored, saving, and the searches on a local model."""

import json

import numpy as np
import pytest
from toy import shared_config, toy_scorer

from bbt.api import resume, run, tune
from bbt.backend import HardBackend, require
from bbt.errors import BackendError, ConfigError, PromptError
from bbt.optimizers import Settings
from bbt.optimizers.nevergrad import NevergradChoices
from bbt.prompts.hard import HardPrompt
from bbt.scoring.ledger import Ledger
from bbt.scoring.losses import cross_entropy, predicted
from bbt.scoring.remembering import RememberingJudge, RememberingObjective, answers
from bbt.spaces.hard import ChoiceSpace, RoundedSpace, readable_ids
from bbt.spaces.soft import PromptSpace
from bbt.tasks.template import Template
from bbt.testing import ToyBackend

WORDS = ("bad", "great", "positive")
TEXTS = ["a film", "the plot is bad and the acting is worse"]


def config(folder, method, **sections):
    tree = {
        "task": {"name": "sst2", "label_words": ["bad", "great"]},
        "data": {"k": 4},
        "model": {"name": str(folder), "options": {"precision": "fp32", "device": "cpu"}},
        "method": method if isinstance(method, dict) else {"name": method},
        "prompt": {"n_prompt_tokens": 3, "intrinsic_dim": 6, "n_screened": 2},
        "optimizer": {"population_size": 4},
        "budget": {"queries": 24, "dev_every": 8},
        "evaluation": {"rows": 10},
    }
    return shared_config({**tree, **sections})


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "llama"])
def test_a_hard_prompt_scores_as_its_words_written_into_the_template(name, tiny_backend):
    backend = tiny_backend(name)
    ids = np.array([backend.prompt_ids("a great film"), backend.prompt_ids("slow bad story")])
    prompted, written = Template(". {prompt} . {text} It was {mask}"), Template(". {text_pair} . {text} It was {mask}")
    hard = backend.encode([prompted.render(t, "", ids.shape[1]) for t in TEXTS], WORDS)
    scores = backend.hard_scores(ids, hard)
    for prompt, row in zip(ids.tolist(), scores, strict=True):
        plain = backend.encode([written.render(t, backend.prompt_text(prompt).strip(), 0) for t in TEXTS], WORDS)
        empty = np.zeros((1, 0, backend.info.hidden_size), np.float32)
        np.testing.assert_allclose(row, backend.label_scores(empty, plain)[0], atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "llama"])
def test_readable_words_survive_being_written_down(name, tiny_backend):
    backend = tiny_backend(name)
    ids = readable_ids(backend)
    assert len(ids) > 20
    for prompt in np.random.default_rng(0).choice(ids, (20, 3)).tolist():
        assert backend.prompt_ids(backend.prompt_text(prompt)) == prompt


def test_a_backend_of_soft_prompts_only_is_refused():
    with pytest.raises(BackendError, match=r"needs hard prompts \(words\), which ToyBackend does not offer"):
        require(ToyBackend(), HardBackend)


def test_a_rounded_space_holds_words_only_and_its_origin_is_p0():
    words = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    ids = np.arange(100, 130)
    soft = PromptSpace(words[None, [3, 5]], np.random.default_rng(1).standard_normal((8, 2)).astype(np.float32))
    space = RoundedSpace(soft, ids, words, "cosine", "nearest")
    np.testing.assert_array_equal(space.p0, [[103, 105]])
    np.testing.assert_array_equal(space.prompts(np.zeros((1, 2))), space.p0)
    latents = np.random.default_rng(2).standard_normal((20, 2))
    assert np.isin(space.prompts(latents), ids).all()
    assert len(np.unique(space.prompts(latents), axis=0)) > 3
    assert space.no_prompt.shape == (1, 0)


def test_choices_are_words_by_number():
    space = ChoiceSpace(np.array([7, 8, 9]), 4)
    np.testing.assert_array_equal(space.p0, [[7, 8, 9, 7]])
    np.testing.assert_array_equal(space.prompts(np.array([[2.0, 0, 1, 1]])), [[9, 7, 8, 8]])


def test_nevergrad_finds_the_right_choices():
    target = np.array([3, 1, 4, 1])
    optimizer = NevergradChoices("DiscreteOnePlusOne", Settings(4, population_size=10, budget=600), 6)
    for _ in range(60):
        latents = optimizer.ask()
        assert latents.shape == (10, 4)
        optimizer.tell(latents, (latents != target).sum(axis=1).astype(float))
    np.testing.assert_array_equal(optimizer.mean, target)


def test_only_new_prompts_are_asked_for_once():
    asked, known = [], {}

    def ask(prompts):
        asked.append(prompts.tolist())
        return [int(prompt.sum()) for prompt in prompts]

    first = np.array([[1, 2], [3, 4], [1, 2]])
    assert answers(first, known, ask) == [3, 7, 3]
    assert answers(np.array([[3, 4], [5, 6]]), known, ask) == [7, 11]
    assert answers(first, known, ask) == [3, 7, 3]
    assert sorted(map(tuple, asked[0])) == [(1, 2), (3, 4)]
    assert asked[1:] == [[[5, 6]]]


class HardToy(ToyBackend):
    """The toy of soft prompts, asked in words."""

    def hard_scores(self, token_ids, encoded):
        words = np.concatenate([self.embed_ids(prompt) for prompt in token_ids.tolist()])
        return self.label_scores(words, encoded)

    def prompt_ids(self, text):
        return [int(word) for word in text.split()]

    def prompt_text(self, token_ids):
        return " ".join(map(str, token_ids))


def test_duplicates_cost_no_query_and_a_resumed_run_remembers():
    ledger, backend = Ledger(), HardToy()
    objective = RememberingObjective(toy_scorer(backend, [1.0, 2.0], ledger), cross_entropy, ledger)
    space, latents = ChoiceSpace(np.arange(20, 30), 2), np.array([[1.0, 2], [1, 2], [3, 4]])
    losses = objective.latent_losses(latents, space)
    assert losses[0] == losses[1] != losses[2]
    assert (ledger.train_queries, ledger.examples) == (2, 4)
    again = RememberingObjective(toy_scorer(backend, [1.0, 2.0], ledger), cross_entropy, ledger)
    again.recall(latents, space, losses)
    np.testing.assert_array_equal(again.latent_losses(latents, space), losses)
    assert ledger.train_queries == 2


def test_a_prompt_is_judged_once():
    from toy import TASK

    ledger = Ledger()
    judge = RememberingJudge(toy_scorer(HardToy(), [1.0, 2.0], ledger), TASK, ledger)
    first = judge.verdicts(np.array([[21, 22], [23, 24]]))
    assert judge.verdicts(np.array([[23, 24]])) == first[1:]
    assert ledger.dev_queries == 2
    other = RememberingJudge(toy_scorer(HardToy(), [1.0, 2.0], ledger), TASK, ledger)
    other.remember([np.array([[21, 22]])], first[:1])
    assert other.verdicts(np.array([[21, 22]])) == first[:1]
    assert ledger.dev_queries == 2


@pytest.mark.parametrize("method", ["hard-prompt", "token-search"])
def test_a_search_with_few_prompts_ends_when_it_has_seen_them(method, tiny_folder):
    few = {"name": method, "n_words": 2} if method == "token-search" else {"name": method}
    prompt = {"n_prompt_tokens": 1, "intrinsic_dim": 1, "n_screened": 1, "alpha": 0.05}
    result = tune(config(tiny_folder("gpt2"), few, prompt=prompt, budget={"queries": 500, "dev_every": 500})).result
    assert 1 <= result["cost"]["train_queries"] < 20


@pytest.mark.parametrize(
    ("method", "last"),
    [
        ({"name": "hard-prompt"}, "generation"),
        ({"name": "hard-prompt"}, "screen"),
        ({"name": "hard-prompt", "metric": "l2", "rounding": "distinct"}, "generation"),
        ({"name": "hard-prompt", "rounding": "stochastic"}, "generation"),
        ({"name": "hard-prompt", "rounding": "stochastic"}, "screen"),
        ({"name": "token-search"}, "generation"),
        ({"name": "token-search", "words": "training"}, "generation"),
    ],
)
def test_a_run_that_stopped_after_an_event_goes_on_bit_for_bit(method, last, tiny_folder, tmp_path):
    settings = config(tiny_folder("gpt2"), method)
    whole = run(settings, tmp_path)
    stopped = run(settings, tmp_path)
    events = (stopped.folder / "events.jsonl").read_text().splitlines(keepends=True)
    places = [i for i, line in enumerate(events) if json.loads(line)["event"] == last]
    keep = places[2] if last == "generation" else places[0]
    (stopped.folder / "events.jsonl").write_text("".join(events[: keep + 1]))
    (stopped.folder / "result.json").unlink()
    resumed = resume(stopped.folder)
    assert resumed.result["test"] == whole.result["test"]
    assert resumed.result["prompt_text"] == whole.result["prompt_text"]
    counts = ("train_queries", "dev_queries", "examples", "tokens_up")
    assert [resumed.result["cost"][key] for key in counts] == [whole.result["cost"][key] for key in counts]


def test_the_search_beats_its_random_start_on_the_training_rows(tiny_folder, tmp_path):
    settings = config(tiny_folder("gpt2"), "token-search", budget={"queries": 200, "dev_every": 100})
    log = (run(settings, tmp_path).folder / "events.jsonl").read_text().splitlines()
    losses = [e["losses"] for e in map(json.loads, log) if e["event"] == "generation"]
    assert min(map(min, losses[1:])) < min(losses[0])


def test_training_words_come_from_the_training_texts(tiny_folder):
    method = {"name": "token-search", "words": "training", "n_words": 5}
    first = tune(config(tiny_folder("gpt2"), method, selection={"baselines": False})).result
    assert first["prompt_text"]
    with pytest.raises(ConfigError, match=r"method\.words"):
        tune(config(tiny_folder("gpt2"), {**method, "words": "none"}))


def test_a_damaged_prompt_file_is_named(tmp_path):
    with pytest.raises(PromptError, match="no prompt at"):
        HardPrompt.load(tmp_path)
    (tmp_path / "prompt.json").write_text('{"format": "bbt-hard-prompt/1", "text": "a"}')
    with pytest.raises(PromptError, match=r"prompt\.json is not a hard prompt of format"):
        HardPrompt.load(tmp_path)


def test_no_answer_is_no_prediction():
    scores = np.array([[0.5, 0.5], [0.1, 0.2], [3.0, 1.0]], np.float32)
    np.testing.assert_array_equal(predicted(scores), [-1, 1, 0])
