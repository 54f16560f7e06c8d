"""Text-only endpoints against a real HTTP server, and what is made of their answers."""

import json

import numpy as np
import pytest
from toy import shared_config

from backends.openai import TextBackend
from backends.openai.labels import label_log_probs, votes
from bbt.api import resume, run, tune
from bbt.backend import HardBackend
from bbt.errors import BackendError, ConfigError, EndpointError, LabelWordError
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
    remote = client(peer, top_logprobs=500)
    peer.log.clear()
    remote.hard_scores(np.array([remote.prompt_ids("a great film")]), encoded(remote, 3))
    sent = sorted(body["prompt"] for body in peer.log)
    assert sent == sorted(f"I say : a great film . {text} . It was" for text in TEXTS)


def test_the_text_is_written_as_the_template_is(serve, client):
    peer, template = serve(), Template("Decide.\n{prompt}\n\nReview: {text}\nSentiment:\n {mask}")
    remote = client(peer, top_logprobs=500)
    peer.log.clear()
    remote.hard_scores(np.array([remote.prompt_ids("a great film")]), encoded(remote, 3, template))
    assert sorted(body["prompt"] for body in peer.log)[0] == "Decide.\na great film\n\nReview: a film\nSentiment:\n"


def test_several_places_share_the_words(serve, client):
    peer, template = serve(), Template("{prompt} : {text} . {prompt} {mask}")
    remote = client(peer, top_logprobs=500)
    peer.log.clear()
    remote.hard_scores(np.array([remote.prompt_ids("a great film")]), encoded(remote, 3, template))
    assert sorted(body["prompt"] for body in peer.log)[0] == " a great : a film . film"


def test_what_is_billed_is_counted(serve, client):
    peer = serve()
    remote = client(peer, top_logprobs=500)
    assert remote.traffic.tokens_up == 0  # the probe is no scoring
    remote.hard_scores(np.zeros((1, 0), np.int64), rows := encoded(remote, 0))
    assert remote.traffic.tokens_up == rows.n_tokens
    assert remote.traffic.tokens_down == 2


@pytest.mark.filterwarnings("ignore:.* never named in an answer")
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_an_endpoint_that_tells_no_log_probabilities_is_asked_for_answers(api, serve, client):
    peer = serve(tells=False)
    remote = client(peer, api=api, answer_tokens=4)
    peer.log.clear()
    scores = remote.hard_scores(np.zeros((1, 0), np.int64), encoded(remote, 0))
    assert remote.info.precision == "sampled answers"
    assert all(body["max_tokens"] == 4 and "logprobs" not in body for body in peer.log)
    answers = [remote._api.answers(f"I say : . {text} . It was") for text in TEXTS]
    np.testing.assert_array_equal(scores[0], [votes(answer, WORDS)[0] for answer in answers])


def test_log_probabilities_that_are_required_are_an_error_where_there_are_none(serve, client):
    with pytest.raises(EndpointError, match=r"gives no log-probabilities; set model\.options\.scores to answers"):
        client(serve(tells=False), scores="logprobs")


def test_fewer_answers_than_asked_for_are_an_error(serve, client):
    remote = client(serve(), scores="answers", n_answers=3)
    with pytest.raises(EndpointError, match=r"gave 1 of 3 answers; set model\.options\.n_answers to 1"):
        remote.hard_scores(np.zeros((1, 0), np.int64), encoded(remote, 0))


def test_soft_prompts_are_refused_with_what_to_do(serve, client):
    remote = client(serve(), top_logprobs=500)
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
        shared_config(
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
    scores, found = label_log_probs(tokens, ("bad", "great"))
    np.testing.assert_allclose(np.exp(scores), [0.3, 0.25], rtol=1e-5)
    assert found.all()


def test_a_word_that_is_not_listed_has_the_least_listed_probability():
    scores, found = label_log_probs([(" bad", -1.0), (" good", -4.0)], ("bad", "great"))
    np.testing.assert_allclose(scores, [-1, -4])
    assert found.tolist() == [True, False]
    assert len(set(label_log_probs([(" a", -1.0), (" b", -4.0)], ("bad", "great"))[0])) == 1


@pytest.mark.parametrize("token", ["\u2581été", "\u0120Ã©tÃ©", "\u010aÃ©tÃ©", "\u2581\u2581ÉTÉ", " Été", "été"])
def test_a_token_is_matched_as_text_and_as_a_piece_of_a_vocabulary(token):
    """GPT-2's pieces hold bytes: é is C3 A9, which its alphabet writes Ã©, a blank \u0120, a line break \u010a."""
    scores, found = label_log_probs([(token, -1.0), (" \u0120", -3.0)], ("été", "hiver"))
    assert scores.tolist() == [-1.0, -3.0]
    assert found.tolist() == [True, False]


def test_votes_are_the_first_label_word_of_each_answer():
    answers = ["It was Great, not bad.", "badly done", "a bad one", "hm"]
    np.testing.assert_allclose(np.exp(votes(answers, ("bad", "great"))[0]), [2 / 6, 2 / 6], rtol=1e-6)
    scores, found = votes(["not very good"], ("good", "very good"))
    np.testing.assert_allclose(np.exp(scores), [1 / 3, 2 / 3], rtol=1e-6)
    assert found.tolist() == [False, True]


# Servers differ in what they tell


@pytest.mark.parametrize("api", ["completions", "chat"])
@pytest.mark.parametrize("odd", [{"pieces": True}, {"nulls": 3}, {"chat_lists": True}])
def test_however_the_list_is_written_the_scores_are_the_same(api, odd, serve, client):
    plain, other = client(serve(), api=api, top_logprobs=500), client(serve(**odd), api=api, top_logprobs=500)
    prompt = np.array([plain.prompt_ids("a great film")])
    expected = plain.hard_scores(prompt, encoded(plain, 3))
    # Two pieces of one text are one token in a list by text, and the least likely of all are no label words.
    np.testing.assert_allclose(other.hard_scores(prompt, encoded(other, 3)), expected, atol=0.1)


@pytest.mark.parametrize("content", [None, "", [], [{"type": "text", "text": "It was great"}, {"type": "refusal"}]])
def test_a_chat_answer_without_text_names_no_label(content, serve, client):
    remote = client(serve(tells=False, content=content), api="chat")
    rows = encoded(remote, 0)
    if content:
        assert remote.hard_scores(np.zeros((2, 0), np.int64), rows).argmax(axis=-1).tolist() == [[1, 1], [1, 1]]
    else:
        with pytest.raises(EndpointError, match=r"label words 'bad', 'great', 'positive' never named in an answer"):
            remote.hard_scores(np.zeros((2, 0), np.int64), rows)


@pytest.mark.parametrize("state", [408, 425, 429, 500, 502, 503, 504, 507, *range(520, 531), 598, 599])
def test_states_that_pass_are_tried_again(state, serve, client, monkeypatch):
    monkeypatch.setattr("backends.transport.BACKOFF", 0.001)
    peer = serve(states=iter([state, state]))
    assert client(peer, retries=2).info.precision == "listed log-probabilities"
    peer.states = iter([state])
    with pytest.raises(EndpointError, match=f"{state} .*not now; given up after 1 attempt"):
        client(peer)


@pytest.mark.parametrize("state", [404, 413, 422, 501, 505, 511])
def test_states_that_stay_are_not(state, serve, client):
    peer = serve(states=iter([state]))
    with pytest.raises(EndpointError, match=rf"{state} .*not now\.$"):
        client(peer, retries=8)
    assert not peer.log


# Label words that cannot win


def test_a_label_word_that_is_never_listed_ends_the_first_population(serve, client):
    remote = client(serve(hidden=("positive",)), top_logprobs=500)
    rows, two = encoded(remote, 0), np.zeros((2, 0), np.int64)
    assert remote.hard_scores(two[:1], rows).shape == (1, 2, 3)  # one candidate is no proof
    with pytest.raises(
        EndpointError, match=r"label word 'positive' never among .* raise model\.options\.top_logprobs.*It was' -> '"
    ):
        remote.hard_scores(two, rows)


def test_where_no_label_word_is_listed_one_candidate_is_warned_of(serve, client):
    remote = client(serve(hidden=WORDS), top_logprobs=500)
    with pytest.warns(UserWarning, match="label words 'bad', 'great', 'positive' never among the most likely"):
        remote.hard_scores(np.zeros((1, 0), np.int64), encoded(remote, 0))


@pytest.mark.filterwarnings("ignore:.* never among the most likely")
def test_a_search_that_scores_one_prompt_at_a_time_is_ended_too(serve, client):
    """As where all candidates of a generation are the same words."""
    peer = serve(hidden=WORDS)
    remote = client(peer, top_logprobs=500)
    rows, one = encoded(remote, 0), np.zeros((1, 0), np.int64)
    peer.log.clear()
    for _ in range(7):
        remote.hard_scores(one, rows)
    with pytest.raises(EndpointError, match="label words 'bad', 'great', 'positive' never among the most likely"):
        remote.hard_scores(one, rows)
    assert len(peer.log) == 16


def test_a_label_word_that_was_listed_once_may_be_missing_later(serve, client):
    peer = serve()
    remote = client(peer, top_logprobs=500)
    rows, two = encoded(remote, 0), np.zeros((2, 0), np.int64)
    remote.hard_scores(two, rows)
    peer.hidden = ("positive",)
    scores = remote.hard_scores(two, rows)
    assert (scores[:, :, 2] <= scores.min(axis=-1)).all()


@pytest.fixture
def searched(serve, tiny_folder):
    """peer, queries -> the config of a search over words that asks the peer for log-probabilities."""

    def make(peer, queries=16):
        options = {"url": peer.url, "vocabulary": str(tiny_folder("gpt2")), "top_logprobs": 500, "retries": 0}
        return shared_config(
            {
                "task": {"name": "sst2", "label_words": ["bad", "great"]},
                "data": {"k": 2},
                "model": {"backend": "text-api", "name": "peer", "options": options},
                "method": {"name": "token-search"},
                "prompt": {"n_prompt_tokens": 2},
                "optimizer": {"population_size": 4},
                "budget": {"queries": queries, "dev_every": 4},
                "selection": {"baselines": False},
                "evaluation": {"rows": 2, "references": False},
            }
        )

    return make


def test_a_resumed_search_knows_which_label_words_were_listed(serve, searched, tmp_path):
    peer = serve("llama", max_length=600)
    folder = run(searched(peer), tmp_path).folder
    cut_after(folder, "generation", 2)
    peer.hidden = ("great",)  # from now on, as a word may be missing for a while
    resumed = resume(folder)
    assert resumed.result["cost"]["train_queries"] > 8


def test_a_resumed_search_still_ends_where_a_label_word_was_never_listed(serve, searched, tmp_path):
    """The start of a run alone proves nothing of label words."""
    peer = serve("llama", max_length=600)
    folder = run(searched(peer), tmp_path).folder
    cut_after(folder, "start", 1)
    peer.hidden = ("great",)
    with pytest.raises(EndpointError, match="label word 'great' never among the most likely"):
        resume(folder)


def cut_after(folder, kind, n):
    """A run folder as a power cut leaves it after so many events of a kind."""
    events = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    last = [i for i, event in enumerate(events) if json.loads(event)["event"] == kind][n - 1]
    (folder / "events.jsonl").write_text("".join(events[: last + 1]))
    (folder / "result.json").unlink()


def test_label_words_of_several_tokens_are_refused_where_tokens_are_listed(serve, client):
    rows = [TEMPLATE.render("a film", "", 0)]
    with pytest.raises(LabelWordError, match=r"'badgreatly' is not one token .*model\.options\.scores to answers"):
        client(serve()).encode(rows, ("bad", "badgreatly"))
    assert client(serve(), scores="answers").encode(rows, ("bad", "badgreatly")).label_words == ("bad", "badgreatly")


@pytest.mark.parametrize("scores", ["logprobs", "answers"])
def test_label_words_that_text_does_not_tell_apart_are_refused(scores, serve, client):
    with pytest.raises(LabelWordError, match="'Bad' and 'bad' differ in case"):
        client(serve(), scores=scores).encode([TEMPLATE.render("a film", "", 0)], ("Bad", "bad"))
