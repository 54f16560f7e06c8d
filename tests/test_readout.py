"""Labels that are read from many words: the closed form against the plain one, no harm where there is nothing to read,
and a run that finds more than its label words tell."""

import json
import string
from itertools import permutations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from bbt.api import resume, run
from bbt.config import make_config
from bbt.errors import LabelWordError
from bbt.predictor import Predictor
from bbt.prompts.soft import SoftPrompt
from bbt.scoring.calibration import class_biases
from bbt.scoring.losses import cross_entropy, log_softmax
from bbt.scoring.readout import Strength, chosen_strength, fitted_readout, left_out_scores
from bbt.scoring.words import further_words
from bbt.tasks import Example, Task, Template
from bbt.testing import ToyBackend

K, M, B = 3, 12, 30
STRENGTH = Strength(ridge=0.3, step=4.0)


def drawn(seed=0, n=2, told=0.0):
    """Scores of M words, the last K of which tell the label, as strongly as `told` says; the label words do not."""
    rng = np.random.default_rng(seed)
    labels = np.arange(B) % K
    scores = rng.normal(size=(n, B, M))
    scores[:, :, M - K :] += told * np.eye(K)[labels]
    return scores, labels


def plain(scores, labels, rows, strength=STRENGTH):
    """Scores (B, K) of one prompt by scikit-learn's ridge regression on some of the rows; the label words' class
    biases, and the words' means and scale, are those of all rows."""
    own = scores[:, :K] + class_biases("fitted", scores[None, :, :K], labels)[0]
    words = scores - scores.mean(axis=1, keepdims=True)
    words = words - words.mean(axis=0)
    words /= np.sqrt((words**2).sum(axis=1).mean())
    residual = np.eye(K)[labels] - np.exp(log_softmax(own))
    fitted = Ridge(alpha=strength.ridge).fit(words[rows], residual[rows])
    return own + strength.step * fitted.predict(words)


def test_the_readout_is_a_ridge_regression_of_what_the_label_words_leave():
    scores, labels = drawn(told=1.0)
    readout = fitted_readout(scores[1], labels, K, STRENGTH)
    ours = scores[1] @ readout.weights.T + np.array(readout.biases)
    expected = plain(scores[1], labels, np.arange(B))
    np.testing.assert_allclose(log_softmax(ours), log_softmax(expected), atol=1e-5)
    assert sum(readout.biases) == pytest.approx(0.0, abs=1e-9)


def test_a_left_out_row_is_answered_by_the_weights_of_the_others():
    scores, labels = drawn(told=1.0)
    ours = left_out_scores(scores, labels, K, STRENGTH)
    for i in (0, 7, 29):
        others = np.arange(B) != i
        expected = [plain(one, labels, others)[i] for one in scores]
        np.testing.assert_allclose(ours[:, i], expected, atol=1e-8)


def test_a_constant_added_to_a_row_or_to_a_label_word_changes_no_answer():
    scores, labels = drawn(told=1.0)
    rng = np.random.default_rng(1)
    readout = fitted_readout(scores[0], labels, K, STRENGTH)
    np.testing.assert_allclose(readout.weights.sum(axis=1), 1.0, atol=1e-5)
    shifted = scores + rng.normal(size=(len(scores), B, 1)) * 5
    found = [left_out_scores(s, labels, K, STRENGTH) for s in (scores, shifted, scores + 9.0 * (np.arange(M) == 1))]
    losses = [cross_entropy(one, labels) for one in found]
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-6)
    np.testing.assert_allclose(losses[2], losses[0], atol=1e-4)


def test_words_that_tell_the_label_are_read_and_others_are_not():
    for seed in range(5):
        scores, labels = drawn(seed, told=3.0)
        strength = chosen_strength(scores[0], labels, K)
        assert strength is not None
        better = cross_entropy(left_out_scores(scores, labels, K, strength), labels)
        own = scores[..., :K]
        assert (better < cross_entropy(own + class_biases("fitted", own, labels)[:, None], labels) - 0.2).all()
        noise, labels = drawn(seed)
        assert chosen_strength(noise[0], labels, K) is None


def test_a_broken_prompt_has_no_scores_and_harms_no_other():
    scores, labels = drawn(told=1.0)
    broken = scores.copy()
    broken[0, 3, 5] = np.nan
    found = left_out_scores(broken, labels, K, STRENGTH)
    assert np.isnan(found[0]).all()
    np.testing.assert_array_equal(found[1], left_out_scores(scores, labels, K, STRENGTH)[1])
    assert np.isfinite(left_out_scores(np.zeros((1, B, M)), labels, K, STRENGTH)).all()  # all words alike


def test_the_words_are_the_commonest_of_the_rows_that_the_model_has_as_one_token(tiny_backend):
    backend = tiny_backend("bert")
    task = Task("t", Template("{prompt} {text} . It was {mask} ."), ("bad", "great"), ("bad", "great"))
    texts = ("The film, the film!", "a GREAT film so slow", "unheardofword slow the 123 ab")
    rows = [Example(text, 0) for text in texts]
    found = further_words(backend, task, rows, 5)
    assert found == ("film", "slow", "the")
    assert further_words(backend, task, rows, 2) == ()
    assert "unheardofword" not in further_words(backend, task, rows, 50)
    backend.encode(task.rows(rows, 0), [*task.label_words, *found])


@pytest.mark.parametrize("lists", [True, False])
def test_what_a_backend_lists_as_refused_is_asked_for_no_more(lists):
    """An endpoint far away is asked twice for 64 words; one that does not say what it refuses, for half after half."""
    known, asked = {"bad", "great", "film", "xbb"}, []

    class Strict(ToyBackend):
        def encode(self, rows, label_words, anchor=None):
            asked.append(len(label_words))
            if refused := [word for word in label_words if word not in known]:
                raise LabelWordError(f"label word {refused[0]!r} is unknown.", refused if lists else ())
            return super().encode(rows, label_words, anchor)

    task = Task("t", Template("{prompt} {text} {mask}"), ("bad", "great"), ("bad", "great"))
    letters = string.ascii_lowercase
    rows = [Example("film " + " ".join(f"x{a}{b}" for a in letters[:8] for b in letters[:7]), 0)]
    assert further_words(Strict(), task, rows, 128) == ("film", "xbb")
    assert len(asked) == 2 if lists else len(asked) > 20


class TellingBackend(ToyBackend):
    """A backend whose label words say nothing, while the word `red` says whether a text is of red; the more so, the
    closer the prompt is to the target."""

    def encode(self, rows, label_words, anchor=None):
        encoded = super().encode(rows, label_words, anchor)
        texts = [" ".join(s.text for s in row if s.kind == "text") for row in rows]
        encoded.difficulties = [1.0 if "red" in text else -1.0 for text in texts]
        encoded.red = [i for i, word in enumerate(label_words) if word == "red"]
        return encoded

    def label_scores(self, prompts, encoded):
        closeness = super().label_scores(prompts, encoded)[:, :1, 1] - encoded.difficulties[0]
        scores = np.zeros((len(prompts), encoded.n_examples, encoded.n_labels), np.float32)
        scores[:, :, encoded.red] = (np.array(encoded.difficulties) * np.exp(closeness / 100))[..., None]
        return scores


def settings(tmp_path, **more):
    files = {}
    for part, first in (("train", 0), ("test", 20)):
        numbered = range(first, first + 20)
        rows = [{"text": f"{c} thing {i} here", "label": k} for i in numbered for k, c in enumerate(("red", "blue"))]
        files[part] = tmp_path / f"{part}.jsonl"
        files[part].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "name": "run",
        "task": {"name": "colours", "template": "{prompt} {text} {mask}", "label_words": ["no", "yes"]},
        "data": {"source": "files", "train": str(files["train"]), "test": str(files["test"]), "k": 6},
        "model": {"backend": "test_readout:TellingBackend", "name": "toy"},
        "prompt": {"n_prompt_tokens": 2, "intrinsic_dim": 3, "n_screened": 3},
        "optimizer": {"population_size": 4},
        "budget": {"queries": 23, "dev_every": 10},
        **more,
    }  # fmt: skip


@pytest.fixture
def made(tmp_path):
    return run(make_config(settings(tmp_path)), tmp_path / "runs")


def test_a_run_reads_what_its_label_words_do_not_tell(made, tmp_path):
    test = made.result["test"]
    assert test["manual"]["accuracy"] == 0.0  # all scores of a row are alike, which is no answer
    assert test["manual calibrated"]["accuracy"] == 0.0
    assert test["manual words"]["accuracy"] == test["tuned"]["accuracy"] == 1.0
    events = [json.loads(line) for line in (made.folder / "events.jsonl").read_text().splitlines()]
    (tried,) = [event for event in events if event["event"] == "words"]
    assert "red" in tried["words"]
    assert tried["strength"]
    predictor = Predictor(made.folder)
    assert [one["label"] for one in predictor.predict(["a red thing", "blue it is"])] == ["no", "yes"]
    prompt = SoftPrompt.load(made.folder)
    assert prompt.weights.shape == (2, 2 + len(prompt.words))
    assert made.result["n_parameters"] == 3 + prompt.weights.size


def test_a_run_that_was_stopped_goes_on_with_the_same_words(made, tmp_path):
    whole = (made.folder / "events.jsonl").read_bytes()
    for n_events in (1, 2, 4):
        (made.folder / "events.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:n_events]))
        (made.folder / "result.json").unlink()
        again = resume(made.folder)
        assert again.result["test"] == made.result["test"]
        assert again.result["cost"]["dev_queries"] == made.result["cost"]["dev_queries"]
        assert SoftPrompt.load(made.folder).weights.tobytes() == SoftPrompt.load(again.folder).weights.tobytes()


@pytest.mark.parametrize("more", [{"method": {"name": "black-box", "n_words": 0}}, {"calibration": "none"}])
def test_a_run_that_is_to_read_label_words_alone_tries_no_others(more, tmp_path):
    made = run(make_config(settings(tmp_path, **more)), tmp_path / "runs")
    assert "manual words" not in made.result["test"]
    assert '"words"' not in (made.folder / "events.jsonl").read_text().replace('"label_words"', "")


def test_the_manual_prompt_may_be_read_from_many_words(tmp_path):
    tree = settings(tmp_path, method={"name": "manual", "n_words": 128})
    tree = {key: value for key, value in tree.items() if key not in ("prompt", "optimizer", "budget")}
    made = run(make_config(tree), tmp_path / "runs")
    assert made.result["test"]["tuned"]["accuracy"] == 1.0
    assert made.result["cost"]["dev_queries"] == 3
    assert Predictor(made.folder).predict(["red"])[0]["label"] == "no"


def test_a_prompt_that_gradients_have_tuned_may_be_read_from_many_words(tmp_path):
    tree = settings(tmp_path, method={"name": "prompt-tuning", "n_words": 128, "steps": 2})
    sport, money = ("team", "game", "coach", "season", "goal", "match"), ("shares", "market", "profit", "bank", "oil")
    for part, verb in (("train", "beat"), ("test", "lost")):
        rows = [
            {"text": f"The {a} and the {b} {verb}.", "label": k}
            for k, topic in enumerate((sport, money))
            for a, b in permutations(topic, 2)
        ]
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree["task"] |= {"template": "{prompt} {text} It was {mask} .", "label_words": ["very", "quite"]}
    tree["data"] |= {"k": 10}
    tree["model"] = {"name": "minilm-mlm", "options": {"precision": "fp32"}}
    tree["prompt"] = {"n_prompt_tokens": 2}
    tree = {key: value for key, value in tree.items() if key not in ("optimizer", "budget")}
    made = run(make_config(tree), tmp_path / "runs")
    prompt = SoftPrompt.load(made.folder)
    assert made.result["selected"]["who"].endswith(" words")
    assert made.result["test"]["tuned"]["accuracy"] > made.result["test"]["untuned"]["accuracy"] + 0.1
    assert prompt.weights.shape == (2, 2 + len(prompt.words))
    assert made.result["n_parameters"] == prompt.embeddings.size + prompt.weights.size
    answers = Predictor(made.folder).predict(["The coach and the team lost.", "The oil market lost."])
    assert [one["label"] for one in answers] == ["very", "quite"]
