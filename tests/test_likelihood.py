"""Labels of several tokens, scored by their likelihood."""

import numpy as np
import pytest
import torch
from toy import ToyBackend, shared_config

from bbt.api import estimate, run
from bbt.baselines.losses import training_loss
from bbt.build import make_experiment
from bbt.errors import BackendError, ConfigError, LabelWordError
from bbt.methods.in_context import demonstrated
from bbt.predictor import Predictor
from bbt.scoring.judge import Verdict
from bbt.scoring.ledger import Ledger
from bbt.scoring.losses import cross_entropy, log_softmax
from bbt.scoring.scorers import scorer_of
from bbt.settings import PriceConfig
from bbt.tasks import Example, Task, Template

TEMPLATE = Template("{prompt} . {text} . The sentiment is {mask}")
EXAMPLES = [Example("a film so bad that it was great", 0), Example("warm", 1), Example(" ".join(["story"] * 80), 0)]
NAMES = ("bad", "good")
LONG = ("not a good film", "great")


def task(words, by):
    return Task("own", TEMPLATE, NAMES, words, scored_by=by)


def scores(backend, prompts, words, by, ledger=None):
    return scorer_of(backend, task(words, by), EXAMPLES, ledger or Ledger()).scores(prompts)


@pytest.fixture(params=["gpt2", "llama"])
def backend(request, tiny_backend):
    return tiny_backend(request.param)


@pytest.fixture
def prompts(backend):
    return np.random.default_rng(0).normal(0, 1, (3, 4, backend.info.hidden_size)).astype(np.float32)


def test_labels_of_one_token_score_as_label_words_do(backend, prompts):
    found = [log_softmax(scores(backend, prompts, ("bad", "great"), by)) for by in ("label_words", "likelihood")]
    np.testing.assert_allclose(*found, atol=1e-4)


def test_labels_of_several_tokens_score_as_their_sum_or_their_mean(backend, prompts):
    sums, means = (scores(backend, prompts, LONG, by) for by in ("likelihood", "mean_likelihood"))
    own = task(LONG, "likelihood")
    encoded = backend.encode_pairs(own.labelled_rows(EXAMPLES, 4))
    np.testing.assert_allclose(sums, backend.target_log_likelihoods(prompts, encoded).reshape(3, 3, 2))
    n_tokens = encoded.n_target_tokens.reshape(3, 2)
    assert n_tokens[0, 0] > 1 == n_tokens[0, 1]
    np.testing.assert_allclose(means * n_tokens, sums, rtol=1e-5)


def test_a_long_row_is_cut_at_one_place_for_all_labels_and_counted_once(backend, prompts):
    ledger = Ledger()
    scores(backend, prompts, LONG, "likelihood", ledger)
    assert ledger.truncated == 1
    assert ledger.examples == 9
    pairs = backend.encode_pairs(task(LONG, "likelihood").labelled_rows(EXAMPLES, 4)).pairs
    assert pairs[4].context == pairs[5].context
    assert len(pairs[4].context.ids) + len(pairs[4].target) - 1 == backend.info.max_length


def config(folder, **changes):
    return shared_config(
        {
            "task": {
                "name": "own",
                "template": TEMPLATE.source,
                "label_words": list(LONG),
                "label_names": ["negative", "positive"],
                "scored_by": "likelihood",
                **changes.pop("task", {}),
            },
            "data": {"source": "files", "k": 2, "train": str(folder / "rows.csv"), "test": str(folder / "rows.csv")},
            "prompt": {"n_prompt_tokens": 3, "intrinsic_dim": 8, "n_screened": 2},
            "optimizer": {"population_size": 4},
            "budget": {"queries": 12, "dev_every": 8},
            "selection": {"baselines": False},
            **changes,
        }
    )


@pytest.fixture
def rows(tmp_path):
    lines = [f"{text} {i},{i % 2}" for i, text in enumerate(["bad film", "great story"] * 4)]
    (tmp_path / "rows.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    return tmp_path


@pytest.mark.filterwarnings("ignore:the parts of the data overlap")
@pytest.mark.parametrize("by", ["likelihood", "mean_likelihood"])
def test_a_search_runs_on_it_and_what_it_saves_scores_the_same(tiny_folder, rows, by):
    model = {"name": str(tiny_folder("gpt2")), "options": {"precision": "fp32", "device": "cpu"}}
    outcome = run(config(rows, model=model, task={"scored_by": by}), rows / "runs")
    assert outcome.result["selected"]["who"] != "manual"
    again = Predictor(outcome.folder)
    assert again.task.scored_by == by
    examples = [Example("bad film", 0), Example("warm", 1)]
    np.testing.assert_array_equal(
        again.classifier.scores(examples, Ledger()), outcome.classifier.scores(examples, Ledger())
    )
    assert set(again.predict(["bad film"])[0]["probabilities"]) == {"negative", "positive"}


def model_of(folder):
    return {"name": str(folder), "options": {"precision": "fp32", "device": "cpu"}}


@pytest.mark.filterwarnings("ignore:the parts of the data overlap")
@pytest.mark.parametrize("method", ["prompt-tuning", "p-tuning", "prefix-tuning", "lora", "adapter", "bitfit"])
@pytest.mark.parametrize("by", ["likelihood", "mean_likelihood"])
def test_trainings_take_it_and_what_they_save_scores_the_same(tiny_folder, rows, method, by, monkeypatch):
    monkeypatch.setattr(Verdict, "better_than", lambda self, other, by: True)
    own = {"name": method, "steps": 12, "batch_size": 4, "learning_rate": 3e-2}
    given = config(rows, model=model_of(tiny_folder("gpt2")), task={"scored_by": by}, method=own, calibration="none")
    given = given.model_copy(update={"price": PriceConfig(up=1.0, down=1000.0)})
    outcome = run(given, rows / "runs")
    price = outcome.result["price"]
    assert price["search"] + price["test"] == pytest.approx(estimate(given).price)
    again = Predictor(outcome.folder)
    e = make_experiment(given, again.backend)
    examples, labels = e.split.train, e.train.labels

    def loss(classifier):
        return float(cross_entropy(classifier.scores(examples, Ledger())[None], labels)[0])

    assert loss(outcome.classifier) < loss(e.manual) - 0.05
    assert outcome.result["cost"]["train_queries"] > 0
    np.testing.assert_allclose(
        again.classifier.scores(EXAMPLES, Ledger()), outcome.classifier.scores(EXAMPLES, Ledger()), atol=1e-4
    )


@pytest.mark.filterwarnings("ignore:the parts of the data overlap")
@pytest.mark.parametrize("method", ["prompt-tuning", "model-tuning"])
def test_labels_of_one_token_are_trained_as_label_words_are(tiny_folder, rows, method):
    found = []
    for by in ("label_words", "likelihood"):
        task = {"scored_by": by, "label_words": ["bad", "great"]}
        own = {"name": method, "steps": 5, "batch_size": 2}
        given = config(rows, model=model_of(tiny_folder("llama")), task=task, method=own)
        found.append(log_softmax(run(given, rows / by).classifier.scores(EXAMPLES[:2], Ledger())))
    np.testing.assert_allclose(*found, atol=2e-3)


@pytest.mark.filterwarnings("ignore:the parts of the data overlap")
def test_gradients_follow_the_loss_of_the_forward_pass(tiny_backend, rows, random_prompts):
    for name, by in (("gpt2", "likelihood"), ("t5", "mean_likelihood")):
        e = make_experiment(config(rows, task={"scored_by": by}), tiny_backend(name))
        vectors = random_prompts(1, 3)
        prompt = torch.from_numpy(vectors[0])
        losses = training_loss(e, e.backend.trainable(), 3, lambda prompt=prompt: prompt).of(range(4))
        expected = cross_entropy(e.train.scores(vectors), e.train.labels)[0]
        assert float(losses.mean()) == pytest.approx(float(expected), abs=1e-4)


def test_demonstrations_are_solved_with_whole_labels(tiny_backend, prompts):
    own = task(LONG, "likelihood")
    for name in ("gpt2", "llama"):
        backend = tiny_backend(name)
        shown = demonstrated(backend, own, EXAMPLES[:2])
        found = shown.scores([Example("a film", 0)], Ledger())
        said = (
            "a film so bad that it was great . The sentiment is not a good film\n"
            "warm . The sentiment is great\na film . The sentiment is {mask}"
        )
        whole = Task("own", Template("{text}" + said.removeprefix("a")), NAMES, LONG, scored_by="likelihood")
        no_prompt = np.zeros((1, 0, backend.info.hidden_size), np.float32)
        expected = scorer_of(backend, whole, [Example("a", 0)], Ledger()).scores(no_prompt)[0]
        np.testing.assert_allclose(found, expected, atol=1e-4)
        many = demonstrated(backend, own, EXAMPLES[:2] * 20).task
        (row,) = many.rows([Example("a film", 0)], 0)
        n_shown = row[0].text.count("\n")
        assert 2 < n_shown < 40
        pairs = backend.encode_pairs(many.labelled_rows([Example("a film", 0)], 0))
        assert pairs.n_truncated == 0


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_demonstrations_leave_room_for_the_label_of_most_tokens(name, tiny_backend):
    backend = tiny_backend(name)
    for words in (("zqxjkvwzqxjkv", "great positive negative"), ("great", "great positive negative")):
        own = task(words, "likelihood")
        for n_words in range(20, 40):
            text = " ".join(["film"] * n_words)
            shown = demonstrated(backend, own, EXAMPLES[:2] * 20)
            shown.scores([Example(text, 0)], Ledger())
            assert backend.encode_pairs(shown.task.labelled_rows([Example(text, 0)], 0)).n_truncated == 0


def test_what_it_does_not_go_with_is_said(tiny_backend, backend, prompts, rows):
    with pytest.raises(LabelWordError, match=r"task\.scored_by: likelihood"):
        scores(backend, prompts, LONG, "label_words")
    with pytest.raises(BackendError, match=r"task\.scored_by: likelihood needs likelihoods of targets"):
        scores(ToyBackend(), prompts, LONG, "likelihood")
    with pytest.raises(BackendError, match="only a causal LM"):
        scores(tiny_backend("bert"), prompts, LONG, "likelihood")
    does = r"bbtv2 takes no task that is scored by likelihood; these do: black-box, .*prompt-tuning"
    with pytest.raises(ConfigError, match=does):
        make_experiment(config(rows, method={"name": "bbtv2"}), ToyBackend())
