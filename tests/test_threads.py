"""A backend and a predictor may be called from several threads at once, as a server's sync endpoints call them."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from serving import serving
from test_local_backend import BEFORE, SENTIMENT, TEXTS
from tiny_models import HIDDEN

import bbt
from backends.http import HttpBackend
from bbt.tasks.template import Template

N_THREADS = 4
TEMPLATE = Template("{prompt} . {text} . It was {mask}")


def at_once(work, jobs):
    """What `work` gives for each job, on several threads; the jobs are done in any order."""
    with ThreadPoolExecutor(N_THREADS) as pool:
        return list(pool.map(work, jobs))


@pytest.mark.parametrize("name", ["bert", "gpt2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_thread_gets_its_own_scores(name, precision, tiny_backend, random_prompts):
    backend = tiny_backend(name, precision=precision)
    anchors = (None, random_prompts(1, 5, seed=9)) if name == "bert" else (None,)
    words = (SENTIMENT, ("great", "bad"))
    jobs = [(seed, anchors[seed % len(anchors)], words[seed % 2]) for seed in range(24)]

    def score(job):
        seed, anchor, label_words = job
        rows = backend.encode(BEFORE.rows(TEXTS[seed % 3 :]), label_words, anchor)
        return backend.label_scores(random_prompts(3, 5, seed=seed), rows)

    expected = [score(job) for job in jobs]
    for found, alone in zip(at_once(score, jobs * 3), expected * 3, strict=True):
        np.testing.assert_array_equal(found, alone)


def test_threads_share_rows_of_deep_prompts(tiny_backend, random_prompts):
    backend = tiny_backend("bert")
    rows = backend.encode(BEFORE.rows(), SENTIMENT)
    populations = []
    for seed in range(6):
        deep = random_prompts(6, 5, seed=seed).reshape(3, 2, 5, HIDDEN)
        deep[:, 0] = deep[:1, 0]  # the lower part is shared, and another one in each population
        populations.append(deep)
    expected = [backend.deep_label_scores(deep, rows) for deep in populations]
    found = at_once(lambda deep: backend.deep_label_scores(deep, rows), populations * 5)
    for scores, alone in zip(found, expected * 5, strict=True):
        np.testing.assert_array_equal(scores, alone)


def test_a_predictor_answers_several_threads(tiny_folder, tmp_path):
    outcome = bbt.tune(
        {
            "task": {"name": "sst2", "label_words": ["bad", "great"]},
            "data": {"k": 4},
            "model": {"name": str(tiny_folder("bert")), "options": {"precision": "fp32", "device": "cpu"}},
            "prompt": {"n_prompt_tokens": 3, "intrinsic_dim": 10, "n_screened": 1, "placement": "layernorm"},
            "budget": {"queries": 20, "dev_every": 20},
            "evaluation": {"rows": 8},
        }
    )
    outcome.save(tmp_path)
    predictor = bbt.Predictor(tmp_path)
    texts = [[text] * (1 + i % 2) for i, (text, _) in enumerate(TEXTS)]
    expected = [predictor.predict(batch) for batch in texts]
    assert at_once(predictor.predict, texts * 10) == expected * 10


def test_clients_of_one_server_get_their_own_scores(tiny_folder, tiny_backend, random_prompts):
    """Each client has its rows, its anchor and its prompts; all ask one server at once."""
    local = tiny_backend("bert")
    anchors = (None, random_prompts(1, 5, seed=8), random_prompts(1, 5, seed=9))

    def scores(backend, seed):
        rows = [TEMPLATE.render(text, "", 5) for text, _ in TEXTS[seed % 3 :]]
        encoded = backend.encode(rows, SENTIMENT, anchors[seed % 3])
        return [backend.label_scores(random_prompts(2, 5, seed=seed + i), encoded) for i in range(3)]

    expected = [scores(local, seed) for seed in range(12)]
    with serving(tiny_backend("bert")) as url:
        found = at_once(lambda seed: scores(HttpBackend(str(tiny_folder("bert")), url=url), seed), range(12))
    np.testing.assert_array_equal(
        [[s.sum() for s in client] for client in found], [[s.sum() for s in client] for client in expected]
    )
    for client, alone in zip(found, expected, strict=True):
        for scored, plain in zip(client, alone, strict=True):
            np.testing.assert_array_equal(scored, plain)
