"""The vLLM backend against a real HTTP server of the same dialect: scores, fallback, probe and faults."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from backends.openai import VLLMBackend
from backends.openai.completions import Completions, _encoded
from backends.openai.words import read_words
from backends.transport import Transport
from bbt.errors import BackendError, ConfigError, EndpointError
from bbt.scoring.losses import log_softmax
from bbt.tasks.template import Template

TEMPLATE = Template("{prompt} . {text} . It was {mask}")
TEXTS = ["a film", "the plot is bad and the acting is worse", "great " * 80]
WORDS = ("bad", "great", "positive")


@pytest.fixture
def client(tiny_folder):
    """peer, options -> a backend of it that does not try again."""
    return lambda peer, name="gpt2", **options: VLLMBackend(
        str(tiny_folder(name)), url=peer.url, **{"retries": 0, **options}
    )


def encoded(backend, n_tokens=5):
    return backend.encode([TEMPLATE.render(text, "", n_tokens) for text in TEXTS], WORDS)


def difference(scores, expected):
    return np.abs(log_softmax(scores) - log_softmax(expected)).max()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("chosen", [True, False])
def test_scores_are_those_of_the_local_backend(name, chosen, serve, client, tiny_backend, random_prompts):
    peer = serve(name, chosen=chosen, max_length=65)
    remote, local = client(peer, name, list_size=4), tiny_backend(name)
    prompts = random_prompts(3, 5)
    scores = remote.label_scores(prompts, encoded(remote))
    assert (scores.shape, scores.dtype) == ((3, 3, 3), np.float32)
    assert difference(scores, local.label_scores(prompts, encoded(local))) < 1e-5
    assert encoded(remote).n_truncated == encoded(local).n_truncated == 1


def test_what_the_search_knows_of_the_model_is_what_the_local_backend_says(serve, client, tiny_backend):
    remote, local = client(serve()).info, tiny_backend("gpt2").info
    assert remote.max_length == 63  # one place is the token that the server generates
    facts = {"max_length": 0, "device": "", "fingerprint": ""}
    assert replace(remote, **facts) == replace(local, **facts)


def test_embeddings_and_ordinary_tokens_are_those_of_the_local_backend(serve, client, tiny_backend):
    remote, local = client(serve()), tiny_backend("gpt2")
    np.testing.assert_array_equal(remote.embed_text("a great film"), local.embed_text("a great film"))
    assert remote.ordinary_ids() == local.ordinary_ids()


def test_the_rows_of_a_candidate_stand_together_and_in_lists(serve, client, random_prompts):
    peer = serve()
    remote = client(peer, list_size=4)
    peer.log.clear()
    remote.label_scores(random_prompts(3, 5), encoded(remote))
    assert [len(body["prompt_embeds"]) for body in peer.log] == [4, 4, 1]
    assert all(body["temperature"] == 0 and body["repetition_penalty"] == 1 for body in peer.log)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_halves_the_bytes_and_stays_close(precision, serve, client, random_prompts):
    peer = serve()
    full, half = client(peer), client(peer, precision=precision)
    prompts = random_prompts(2, 5)
    assert difference(half.label_scores(prompts, encoded(half)), full.label_scores(prompts, encoded(full))) < 0.02
    sizes = [sum(map(len, body["prompt_embeds"])) for body in peer.log[-2:]]
    assert sizes[1] - sizes[0] > 0.3 * sizes[1]


def test_more_than_128_labels_are_asked_for_in_parts(serve, reference):
    peer = serve()
    ids = list(range(300))
    log_probs = Completions(Transport(peer.url), "peer").log_probs([[5, 6, 7], [8]], ids)
    with torch.no_grad():
        expected = [
            reference("gpt2").model(torch.tensor([c])).logits[0, -1].log_softmax(-1)[ids] for c in ([5, 6, 7], [8])
        ]
    np.testing.assert_allclose(log_probs, torch.stack(expected), atol=1e-5)


def test_only_the_words_of_a_view_travel():
    whole = np.zeros((1000, 32), dtype=np.float32)
    assert len(_encoded(whole[:2], "fp32")) < 4 * 1000


@pytest.mark.parametrize(("precision", "value"), [("fp32", np.nan), ("fp32", np.inf), ("fp16", 1e6)])
def test_a_candidate_that_is_not_finite_is_not_sent(precision, value, serve, client, random_prompts):
    peer = serve()
    remote = client(peer, precision=precision)
    prompts = random_prompts(3, 5)
    prompts[1, 2, 3] = value
    scores = remote.label_scores(prompts, encoded(remote))
    assert np.isnan(scores[1]).all()
    assert np.isfinite(scores[[0, 2]]).all()
    assert not peer.poisoned
    assert np.isnan(remote.label_scores(prompts[1:2], encoded(remote))).all()


def test_a_poisoned_server_is_named_as_such(serve, client, random_prompts):
    peer = serve()
    remote = client(peer)
    peer.poisoned = True
    with pytest.raises(EndpointError, match=r"is poisoned.*restart it, then go on with bbt resume"):
        remote.label_scores(random_prompts(1, 5), encoded(remote))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embeds": False}, "You must set `--enable-prompt-embeds`"),
        ({"other_words": True}, "the endpoint's word embeddings are not those of the model"),
        ({"wrong_ids": True}, "the endpoint's token ids are not those of the model"),
        ({"key": "secret"}, "401 Unauthorized: Unauthorized. Set api_key_env"),
        ({"poisoned": True}, "is poisoned"),
    ],
)
def test_the_probe_names_what_is_wrong(settings, message, serve, client):
    with pytest.raises(EndpointError, match=message):
        client(serve(**settings))


def test_the_key_comes_from_the_environment(serve, client, monkeypatch):
    monkeypatch.setenv("PEER_KEY", "secret")
    client(serve(key="secret"), api_key_env="PEER_KEY")
    with pytest.raises(ConfigError, match="OTHER_KEY is not set"):
        client(serve(key="secret"), api_key_env="OTHER_KEY")


def test_another_name_is_refused_with_the_names_served(serve, client):
    with pytest.raises(EndpointError, match=r"unknown model 'pear'. Did you mean 'peer'\? Valid: peer"):
        client(serve(), served_name="pear")


def test_the_server_s_length_limit_counts(serve, client):
    remote = client(serve(max_length=40))
    assert remote.info.max_length == 39
    with pytest.raises(BackendError, match=r"takes \d+ tokens, the model 39"):
        encoded(remote, n_tokens=40)


def test_an_address_that_is_no_such_api_is_refused(serve, client):
    peer = serve()
    peer.url += "/v1/nothing"
    with pytest.raises(EndpointError, match="404 Not Found"):
        client(peer)


def test_layernorm_placement_is_refused(serve, client, random_prompts):
    with pytest.raises(BackendError, match="placement: embedding"):
        client(serve()).encode([TEMPLATE.render("a film", "", 5)], WORDS, random_prompts(1, 5))


def test_words_of_a_sharded_checkpoint(tiny_folder, tmp_path, reference):
    plain = reference("llama")
    plain.model.save_pretrained(tmp_path, max_shard_size="20KB")
    plain.tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").exists()
    expected = plain.model.get_input_embeddings().weight
    np.testing.assert_array_equal(read_words(str(tmp_path)).matrix, expected.detach())


def test_words_need_no_other_file_than_their_own(tiny_folder, tmp_path, reference):
    test_words_of_a_sharded_checkpoint(tiny_folder, tmp_path, reference)
    import json

    shards = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    keep = next(file for name, file in shards.items() if "embed_tokens" in name)
    for file in set(shards.values()) - {keep}:
        (tmp_path / file).unlink()
    assert read_words(str(tmp_path)).matrix.shape[1] == 32


@pytest.mark.parametrize(
    ("name", "message"), [("bert", "is a masked LM"), ("nowhere", "cannot read the tokenizer and word embeddings")]
)
def test_words_of_something_else_are_refused(name, message, tiny_folder, tmp_path):
    folder = tiny_folder(name) if name == "bert" else tmp_path
    with pytest.raises(BackendError, match=message):
        read_words(str(folder))


def test_a_log_probability_of_null_is_the_least_there_is(serve, client, random_prompts):
    """JSON has no minus infinity."""
    peer = serve()
    remote = client(peer)
    peer.nulls = 1
    scores = remote.label_scores(random_prompts(1, 5), encoded(remote))
    assert (np.sort(scores, axis=-1)[..., 0] == -9999).all()
    assert (np.sort(scores, axis=-1)[..., 1] > -100).all()
