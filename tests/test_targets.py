"""Targets of several tokens: their likelihoods, and generated text, are what plain transformers says."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import CAUSAL
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from backends.local.sampling import drawn
from bbt.backend import Decoding, Segment
from bbt.errors import BackendError, ConfigError

ROWS = [
    ("a film so bad that it was great", "bad film"),
    ("bad", "great"),
    ("the acting is bad and the plot is worse , it was a slow , warm and funny story", "not a good film , or worse ?"),
    ("bad", "I liked it"),
    ("", "story about two friends\n"),
]
N_TOKENS = 3


def row(text, target, n_tokens=N_TOKENS, tail=" . It was "):
    return (
        Segment("prompt", n_tokens=n_tokens),
        Segment("literal", " . "),
        Segment("text", text),
        Segment("literal", tail),
        Segment("target", target),
    )


def plain_ids(tokenizer, text, target, n_tokens=N_TOKENS):
    """(context ids without the prompt, target ids), written out by hand: where the space belongs to the token after it
    the target has it, and the context does not."""
    keeps_space = len(tokenizer(" a", add_special_tokens=False)["input_ids"]) == 1
    first = tokenizer("a")["input_ids"][: len(tokenizer("a")["input_ids"]) - len(tokenizer.tokenize("a"))]
    context = tokenizer(f"{' ' if keeps_space else ''}. {text} . It was", add_special_tokens=False)["input_ids"]
    ids = tokenizer(f"{' ' if keeps_space else ''}{target}", add_special_tokens=False)["input_ids"]
    return first, context, ids


@pytest.fixture(params=CAUSAL)
def subject(request, tiny_folder, tiny_backend):
    """A backend, and what plain transformers loads from the same folder."""
    folder = tiny_folder(request.param)
    return (
        tiny_backend(request.param),
        AutoModelForCausalLM.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )


@pytest.fixture
def prompts(subject):
    backend = subject[0]
    spread = backend.info.embedding_std
    return np.random.default_rng(0).normal(0, spread, (4, N_TOKENS, backend.info.hidden_size)).astype(np.float32)


def embeddings(model, first, prompt, context):
    words = model.get_input_embeddings().weight
    return torch.cat([words[first], torch.tensor(prompt), words[context]])[None].detach()


@torch.no_grad()
def expected(model, tokenizer, prompts, rows=ROWS):
    found = []
    for prompt in prompts:
        for text, target in rows:
            first, context, ids = plain_ids(tokenizer, text, target)
            inputs = torch.cat([embeddings(model, first, prompt, context)[0], model.get_input_embeddings().weight[ids]])
            log_probs = model(inputs_embeds=inputs[None]).logits[0].log_softmax(-1)
            places = range(len(inputs) - len(ids), len(inputs))
            found.append(sum(log_probs[at - 1, i] for at, i in zip(places, ids, strict=True)))
    return np.array(found).reshape(len(prompts), len(rows))


def test_likelihoods_are_those_of_a_plain_forward_pass(subject, prompts):
    backend, model, tokenizer = subject
    encoded = backend.encode_pairs([row(*pair) for pair in ROWS])
    assert encoded.n_target_tokens.tolist() == [len(plain_ids(tokenizer, *pair)[2]) for pair in ROWS]
    found = backend.target_log_likelihoods(prompts, encoded)
    np.testing.assert_allclose(found, expected(model, tokenizer, prompts), atol=1e-4)


@pytest.mark.parametrize("budget", [1, 60])
def test_likelihoods_are_the_same_however_the_work_is_cut(tiny_backend, budget):
    whole, cut = (tiny_backend("gpt2", token_budget=tokens) for tokens in (None, budget))
    prompts = np.random.default_rng(1).normal(0, 1, (3, N_TOKENS, 32)).astype(np.float32)
    rows = [row(*pair) for pair in ROWS]
    found = [b.target_log_likelihoods(prompts, b.encode_pairs(rows)) for b in (whole, cut)]
    np.testing.assert_allclose(*found, atol=1e-4)


def test_models_that_cannot_be_packed_say_the_same(nothing_packed, subject, prompts):
    backend, model, tokenizer = subject
    found = backend.target_log_likelihoods(prompts, backend.encode_pairs([row(*pair) for pair in ROWS]))
    np.testing.assert_allclose(found, expected(model, tokenizer, prompts), atol=1e-4)


def test_half_precision_is_near(tiny_backend, subject, prompts):
    whole, model, tokenizer = subject
    backend = tiny_backend("gpt2" if "GPT2" in whole.info.architecture else "llama", precision="bf16")
    found = backend.target_log_likelihoods(prompts, backend.encode_pairs([row(*pair) for pair in ROWS]))
    np.testing.assert_allclose(found, expected(model, tokenizer, prompts), rtol=0.05)


def test_a_context_is_computed_once_for_all_of_its_targets(subject, prompts):
    """The trunk is handed fewer tokens than the rows have."""
    backend, _, _ = subject
    rows = [row(ROWS[2][0], target) for target in ("bad", "great", "not bad", "worse")]
    encoded = backend.encode_pairs(rows)
    seen = []
    trunk = backend._frozen.target_evaluator.forward.packed
    handle = trunk.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    backend.target_log_likelihoods(prompts, encoded)
    handle.remove()
    once = encoded.n_tokens // len(rows) + encoded.n_target_tokens.sum()
    assert sum(seen) <= len(prompts) * once < len(prompts) * encoded.n_tokens


def test_targets_of_a_context_do_not_see_each_other(subject, prompts):
    """Long and short ones beside each other, on one tree and, where it would be too long, on several; and rows whose
    own context is long."""
    backend, model, tokenizer = subject
    long = "the plot is bad and the acting is worse"
    targets = ("bad film", "great", "not a good film , or worse ? It was slow", long, f"{long} , it was {long}")
    rows = [(text, target) for text, _ in ROWS[:3] for target in targets]
    encoded = backend.encode_pairs([row(*pair) for pair in rows])
    assert 3 < len(encoded.forest.trees) < len(rows)
    assert max(encoded.forest.lengths) <= backend.info.max_length
    found = backend.target_log_likelihoods(prompts, encoded)
    np.testing.assert_allclose(found, expected(model, tokenizer, prompts, rows), atol=1e-4)


def test_only_what_is_read_is_computed_in_the_last_layer_and_the_head(tiny_backend, random_prompts):
    """And no micro-batch has more tokens than the budget."""
    prompts = random_prompts(4, N_TOKENS)
    backend = tiny_backend("gpt2", token_budget=100)
    encoded = backend.encode_pairs([row(*pair) for pair in ROWS])
    evaluator, seen, last, read = backend.target_evaluator, [], [], []
    trunk = evaluator.forward.packed
    handles = [
        trunk.register_forward_pre_hook(lambda _, a, kw: seen.append(kw["inputs_embeds"].shape[1]), with_kwargs=True),
        trunk.h[-1].layer.mlp.register_forward_pre_hook(lambda _, a: last.append(a[0].shape[1])),
        evaluator.vocabulary.register_forward_pre_hook(lambda _, a: read.append(len(a[0]))),
    ]
    backend.target_log_likelihoods(prompts, encoded)
    for handle in handles:
        handle.remove()
    n_read = len(prompts) * (int(encoded.n_target_tokens.sum()) - 1)  # two targets begin after one context
    assert max(seen) <= 100 < sum(seen)
    assert sum(read) == n_read <= sum(last) <= 2 * n_read < sum(seen)


def test_likelihoods_are_the_same_bits_again_and_from_several_threads(tiny_backend, random_prompts):
    prompts = random_prompts(4, N_TOKENS)
    backend = tiny_backend("gpt2", token_budget=100)
    encoded = backend.encode_pairs([row(*pair) for pair in ROWS])
    first = backend.target_log_likelihoods(prompts, encoded)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: backend.target_log_likelihoods(prompts, encoded), range(16)):
            np.testing.assert_array_equal(found, first)
    assert backend.target_log_likelihoods(prompts[:0], encoded).shape == (0, len(ROWS))


def test_long_texts_are_cut_and_targets_and_whole_texts_are_not(subject):
    backend = subject[0]
    long = " ".join(["story"] * 80)
    rows = [
        (Segment("text", long), Segment("whole", " a good film ?"), Segment("literal", " "), Segment("target", "Yes"))
    ]
    encoded = backend.encode_pairs(rows)
    assert encoded.n_truncated == 1
    pair = encoded.pairs[0]
    assert len(pair.context.ids) + len(pair.target) - 1 == backend.info.max_length
    assert backend.prompt_text(pair.context.ids).rstrip().endswith("a good film ?")
    contexts = backend.encode_contexts(rows, 10)
    assert contexts.n_truncated == 1
    assert len(contexts.rows[0].ids) == backend.info.max_length - 9


@torch.no_grad()
def plain_text(model, tokenizer, inputs, decoding, **how):
    """One row at a time, token by token where it is greedy."""
    ids = model.generate(
        inputs_embeds=inputs,
        attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long),
        max_new_tokens=decoding.max_new_tokens,
        do_sample=False,
        pad_token_id=0,
        **how,
    )[0].tolist()
    end = model.generation_config.eos_token_id
    return tokenizer.decode(ids[: ids.index(end)] if end in ids else ids)


@pytest.mark.parametrize("n_beams", [1, 3])
def test_generated_text_is_plain_transformers_whatever_stands_in_the_batch(subject, prompts, n_beams):
    backend, model, tokenizer = subject
    decoding = Decoding(max_new_tokens=12, stop=(), n_beams=n_beams)
    found = backend.generate(prompts[:1], backend.encode_contexts([row(*pair) for pair in ROWS], 12), decoding)
    for pair, text in zip(ROWS, found, strict=True):
        first, context, _ = plain_ids(tokenizer, *pair)
        inputs = embeddings(model, first, prompts[0], context)
        assert text == plain_text(model, tokenizer, inputs, decoding, num_beams=n_beams).strip()
    assert len(set(found)) > 1


def test_text_ends_before_a_stop_string(subject, prompts):
    backend = subject[0]
    contexts = backend.encode_contexts([row(*pair) for pair in ROWS], 12)
    whole = backend.generate(prompts[:1], contexts, Decoding(12, stop=()))
    stop = whole[0][2:4]
    cut = backend.generate(prompts[:1], contexts, Decoding(12, stop=(stop,)))
    assert cut == [text.split(stop)[0].strip() for text in whole]


def test_samples_are_drawn_by_their_seed_and_leave_the_callers_generator_alone(subject, prompts):
    backend = subject[0]
    contexts = backend.encode_contexts([row(*ROWS[0])], 8)
    state = torch.get_rng_state()
    texts = [backend.generate(prompts[:1], contexts, Decoding(8, (), sample=True, seed=seed)) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_drawn_depends_on_no_other_row_and_on_no_thread(tiny_backend, random_prompts):
    """Each row alone, all of them in small batches, and from several threads at once."""
    prompts = random_prompts(1, N_TOKENS)
    how = Decoding(8, (), sample=True, temperature=1.5, top_p=0.9, seed=3)
    whole, cut = tiny_backend("gpt2"), tiny_backend("gpt2", token_budget=70)
    rows = [row(*pair) for pair in ROWS]
    together = whole.generate(prompts[:1], whole.encode_contexts(rows, 8), how)
    assert len(set(together)) == len(ROWS) - 1  # two have one context
    alone = [whole.generate(prompts[:1], whole.encode_contexts([one], 8), how)[0] for one in rows]
    assert alone == cut.generate(prompts[:1], cut.encode_contexts(rows, 8), how) == together
    contexts = whole.encode_contexts(rows, 8)
    with ThreadPoolExecutor(4) as pool:
        seeds = [pool.submit(whole.generate, prompts[:1], contexts, replace(how, seed=i % 4)) for i in range(24)]
    texts = [seed.result() for seed in seeds]
    assert texts[3] == together
    assert texts[:4] * 6 == texts


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.8), (1.6, 0.3), (1.0, 1e-6)])
def test_tokens_are_drawn_as_often_as_transformers_makes_them_likely(temperature, top_p):
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)) * 3
    warped = TopPLogitsWarper(top_p)(None, TemperatureLogitsWarper(temperature)(None, logits))
    numbers = torch.arange(20_000) / 20_000
    counts = drawn(logits.expand(len(numbers), -1), numbers, temperature, top_p).bincount(minlength=50)
    np.testing.assert_allclose(counts / len(numbers), warped.softmax(-1)[0], atol=2e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "decoding.max_new_tokens is 0: expected 1 or more"),
        ({"n_beams": 2, "sample": True}, "decoding.n_beams is 2: expected 1 where tokens are sampled"),
        ({"top_p": 0.0}, "decoding.top_p is 0.0: expected a number above 0, and 1 at most"),
        ({"temperature": float("nan")}, "decoding.temperature is nan"),
        ({"stop": ("",)}, "decoding.stop is"),
    ],
)
def test_a_decoding_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Decoding(**settings)


def test_no_batch_is_larger_than_the_token_budget(tiny_backend, random_prompts):
    """Padding, beams and new tokens count."""
    prompts = random_prompts(1, N_TOKENS)
    backend = tiny_backend("gpt2", token_budget=150)
    contexts, seen = backend.encode_contexts([row(*pair) for pair in ROWS], 6), []
    handle = backend.model.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[:2] if args[0] is None else (0, 0)),
        with_kwargs=True,
    )
    backend.generate(prompts[:1], contexts, Decoding(6, n_beams=2))
    handle.remove()
    assert sum(n for n, _ in seen) == 2 * len(ROWS)
    assert max(n * (width + 6) for n, width in seen) <= 150 < 2 * len(ROWS) * (max(w for _, w in seen) + 6)


def test_what_cannot_be_scored_is_said(tiny_backend, subject, prompts):
    backend = subject[0]
    with pytest.raises(BackendError, match="does not end in its target"):
        backend.encode_pairs([row(*ROWS[0])[:-1]])
    with pytest.raises(BackendError, match="no token"):
        backend.encode_pairs([row("bad", "", tail=" .\n")])
    with pytest.raises(BackendError, match="tokens, and this model has room for 64"):
        backend.encode_pairs([row("bad", "story " * 200)])
    with pytest.raises(BackendError, match="asked for 4 prompts and 9 tokens"):
        backend.generate(prompts, backend.encode_contexts([row(*ROWS[0])], 4), Decoding(9))
    with pytest.raises(BackendError, match="only a causal LM"):
        tiny_backend("bert").encode_pairs([row(*ROWS[0])])
