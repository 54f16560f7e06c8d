"""Text-only endpoints against a real HTTP server, and what is made of their answers."""

import numpy as np
import pytest

from backends.openai import TextBackend
from backends.openai.answers import label_log_probs, votes
from bbt.api import tune
from bbt.backend import HardBackend
from bbt.errors import BackendError, ConfigError, EndpointError
from bbt.scoring.losses import log_softmax
from bbt.tasks.template import Template

TEMPLATE = Template("I say : {prompt} . {text} . It was {mask}")
TEXTS = ["a film", "the plot is bad and the acting is worse"]
WORDS = ("bad", "great", "positive")


@pytest.fixture
def client(tiny_folder):
    """peer, options -> a text-only backend of it whose vocabulary is that of the tiny GPT-2."""
    return lambda peer, **options: TextBackend(
        "peer", **{"url": peer.url, "vocabulary": str(tiny_folder("gpt2")), "retries": 0, "concurrency": 2, **options}
    )


def encoded(backend, n_tokens, template=TEMPLATE):
    return backend.encode([template.render(text, "", n_tokens) for text in TEXTS], WORDS)


@pytest.mark.parametrize("api", ["completions", "chat"])
@pytest.mark.parametrize("n_tokens", [0, 3])
def test_scores_are_those_of_the_local_backend(api, n_tokens, serve, client, tiny_backend):
    remote, local = client(serve(), api=api, top_logprobs=500), tiny_backend("gpt2")
    ids = np.array([local.prompt_ids("a great film"), local.prompt_ids("slow bad story")])[:, :n_tokens]
    scores = remote.hard_scores(ids, encoded(remote, n_tokens))
    expected = local.hard_scores(ids, encoded(local, n_tokens))
    assert (scores.shape, scores.dtype) == (expected.shape, np.float32)
    # The same words with and without a space before them count together for the endpoint.
    assert np.abs(log_softmax(scores) - log_softmax(expected)).max() < 0.1
    assert isinstance(remote, HardBackend)


def test_the_words_stand_where_the_prompt_does(serve, client):
    peer = serve()
    remote = client(peer)
    peer.log.clear()
    remote.hard_scores(np.array([remote.prompt_ids("a great film")]), encoded(remote, 3))
    sent = sorted(body["prompt"] for body in peer.log)
    assert sent == sorted(f"I say : a great film . {text} . It was" for text in TEXTS)


def test_the_text_is_written_as_the_template_is(serve, client):
    peer, template = serve(), Template("Decide.\n{prompt}\n\nReview: {text}\nSentiment:\n{mask}")
    remote = client(peer)
    peer.log.clear()
    remote.hard_scores(np.array([remote.prompt_ids("a great film")]), encoded(remote, 3, template))
    assert sorted(body["prompt"] for body in peer.log)[0] == "Decide.\na great film\n\nReview: a film\nSentiment:\n"


def test_several_places_share_the_words(serve, client):
    peer, template = serve(), Template("{prompt} : {text} . {prompt} {mask}")
    remote = client(peer)
    peer.log.clear()
    remote.hard_scores(np.array([remote.prompt_ids("a great film")]), encoded(remote, 3, template))
    assert sorted(body["prompt"] for body in peer.log)[0] == " a great : a film . film"


def test_what_is_billed_is_counted(serve, client):
    peer = serve()
    remote = client(peer)
    assert remote.traffic.tokens_up == 0  # the probe is no scoring
    remote.hard_scores(np.zeros((1, 0), np.int64), rows := encoded(remote, 0))
    assert remote.traffic.tokens_up == rows.n_tokens
    assert remote.traffic.tokens_down == 2


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_an_endpoint_that_tells_no_log_probabilities_is_asked_for_answers(api, serve, client):
    peer = serve(tells=False)
    remote = client(peer, api=api, answer_tokens=4)
    peer.log.clear()
    scores = remote.hard_scores(np.zeros((1, 0), np.int64), encoded(remote, 0))
    assert remote.info.precision == "sampled answers"
    assert all(body["max_tokens"] == 4 and "logprobs" not in body for body in peer.log)
    answers = [remote._api.answers(f"I say : . {text} . It was") for text in TEXTS]
    np.testing.assert_array_equal(scores[0], [votes(answer, WORDS) for answer in answers])


def test_log_probabilities_that_are_required_are_an_error_where_there_are_none(serve, client):
    with pytest.raises(EndpointError, match=r"gives no log-probabilities; set model\.options\.scores to answers"):
        client(serve(tells=False), scores="logprobs")


def test_fewer_answers_than_asked_for_are_an_error(serve, client):
    remote = client(serve(), scores="answers", n_answers=3)
    with pytest.raises(EndpointError, match=r"gave 1 of 3 answers; set model\.options\.n_answers to 1"):
        remote.hard_scores(np.zeros((1, 0), np.int64), encoded(remote, 0))


def test_soft_prompts_are_refused_with_what_to_do(serve, client):
    remote = client(serve())
    with pytest.raises(BackendError, match="use method: hard-prompt or token-search"):
        remote.label_scores(np.zeros((1, 3, 32), np.float32), encoded(remote, 3))
    assert remote.label_scores(np.zeros((1, 0, 32), np.float32), encoded(remote, 0)).shape == (1, 2, 3)


@pytest.mark.parametrize(
    ("option", "message"), [("api", "unknown api 'caht'. Did you mean 'chat'"), ("scores", "unknown scores 'caht'")]
)
def test_unknown_options_are_refused(option, message, serve, client):
    with pytest.raises(ConfigError, match=message):
        client(serve(), **{option: "caht"})


@pytest.mark.parametrize("method", ["hard-prompt", "token-search"])
def test_a_prompt_of_words_is_tuned_through_the_endpoint(method, serve, tiny_folder):
    peer = serve("llama", max_length=600)
    outcome = tune(
        {
            "task": {"name": "sst2", "label_words": ["bad", "great"]},
            "data": {"k": 2},
            "model": {
                "backend": "text-api",
                "name": "peer",
                "options": {"url": peer.url, "vocabulary": str(tiny_folder("gpt2")), "top_logprobs": 500},
            },
            "method": {"name": method},
            "prompt": {"n_prompt_tokens": 2, "intrinsic_dim": 4, "n_screened": 2},
            "optimizer": {"population_size": 4},
            "budget": {"queries": 8, "dev_every": 4},
            "selection": {"baselines": False},
            "evaluation": {"rows": 4, "references": False},
            "price": {"up": 1.0},
        }
    )
    text = outcome.result["prompt_text"]
    assert len(text.split()) >= 1
    assert any(text in body["prompt"] for body in peer.log)
    assert outcome.result["price"]["search"] > outcome.result["price"]["test"] > 0


def test_tokens_that_are_the_word_but_for_case_and_space_count_together():
    tokens = [
        (" bad", np.log(0.2)),
        ("Bad", np.log(0.1)),
        (" badly", np.log(0.3)),
        (" great", np.log(0.25)),
        ("x", -5.0),
    ]
    np.testing.assert_allclose(np.exp(label_log_probs(tokens, ("bad", "great"))), [0.3, 0.25], rtol=1e-5)


def test_a_word_that_is_not_listed_has_the_least_listed_probability():
    np.testing.assert_allclose(label_log_probs([(" bad", -1.0), (" good", -4.0)], ("bad", "great")), [-1, -4])
    assert len(set(label_log_probs([(" a", -1.0), (" b", -4.0)], ("bad", "great")))) == 1


def test_votes_are_the_first_label_word_of_each_answer():
    answers = ["It was Great, not bad.", "badly done", "a bad one", "hm"]
    np.testing.assert_allclose(np.exp(votes(answers, ("bad", "great"))), [2 / 6, 2 / 6], rtol=1e-6)
    np.testing.assert_allclose(np.exp(votes(["not very good"], ("good", "very good"))), [1 / 3, 2 / 3], rtol=1e-6)
