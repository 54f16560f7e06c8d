"""`LocalBackend` says what plain transformers says, however the work is cut."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reference import Reference, normalised
from tiny_models import ARCHITECTURES, CAUSAL, DEVICE, MASKED
from transformers import AutoModelForCausalLM, AutoTokenizer, BloomConfig, Gemma2Config

from backends.local import LocalBackend
from backends.models import bundled_models
from bbt.errors import BackendError
from bbt.tasks.template import Template

TEXTS = [
    ("a film so bad that it was great", "two friends"),
    ("bad", "I liked it ; you did not"),
    ("", "the plot"),
    ("Fine, but slow !! A café\n in the World ...  ", "Yes"),
    ("the acting is bad and the plot is worse , it was a slow , warm and funny story about", "no , or yes ?"),
    ("it is a good film ?", "the Sports pages , or the Business pages of the World News , are negative"),
    ("warm", "warm"),
]
SENTIMENT = ("bad", "great")


@dataclass(frozen=True)
class Case:
    """A template, the string that a reader would write for it, and the prompt's shares in its places."""

    template: str
    shares: tuple[int, ...]
    natural: str = ""
    words: tuple[str, ...] = (" bad", " great")

    @property
    def n_tokens(self):
        return sum(self.shares)

    def rows(self, texts=TEXTS):
        return [Template(self.template).render(*pair, self.n_tokens) for pair in texts]

    def expected(self, reference, prompts, texts=TEXTS, after_layernorm=None):
        ids = [reference.ids(self.natural or self.template, self.shares, *pair) for pair in texts]
        offsets = [None] * len(prompts) if after_layernorm is None else after_layernorm
        return np.array(
            [
                [reference.log_probs(row, prompt, self.words, offset) for row in ids]
                for prompt, offset in zip(prompts, offsets, strict=True)
            ]
        )

    def scores(self, backend, prompts, texts=TEXTS, anchor=None):
        return backend.label_scores(prompts, backend.encode(self.rows(texts), [w.strip() for w in self.words], anchor))


TOPICS = (" World", " Sports", " Business")
SAME_FOR_BOTH = {
    "before": Case("{prompt} . {text} . It was {mask}", (5,)),
    "two places": Case("{prompt} . {text} . {prompt} It was {mask}", (3, 2)),
    "after": Case("{text} . {prompt} It was {mask}", (5,)),
    "next to mask": Case("{text} . It was {prompt} {mask}", (5,)),
    "no prompt": Case("{prompt} . {text} . It was {mask}", (), "{text} . It was {mask}"),
}
MASKED_ONLY = {
    "mask inside": Case("{prompt} . {text} . It was {mask} .", (5,)),
    "mask first": Case("{prompt} . {mask} News: {text}", (5,), words=TOPICS),
    "brackets": Case("{prompt} [ Category: {mask} ] {text}", (5,), words=TOPICS),
    "prompt last": Case("{text} . It was {mask} . {prompt}", (5,)),
    "pair": Case("{prompt} . {text} ? {mask} , {text_pair}", (5,), words=(" Yes", " No")),
    "no prompt, mask first": Case(
        "{prompt} . {mask} News: {text}", (), "{mask} News: {text}", ("World", "Sports", "Business")
    ),
}
CAUSAL_ONLY = {
    "sentiment": Case("{prompt} . {text} . The sentiment is {mask}", (5,), words=(" negative", " positive")),
    "pair": Case("{prompt} . {text} Question : {text_pair} Answer : {mask}", (5,), words=(" yes", " no", " maybe")),
}
CASES = {
    **{f"{a}: {c}": (a, case) for a in MASKED for c, case in {**SAME_FOR_BOTH, **MASKED_ONLY}.items()},
    **{f"{a}: {c}": (a, case) for a in CAUSAL for c, case in {**SAME_FOR_BOTH, **CAUSAL_ONLY}.items()},
}
every_case = pytest.mark.parametrize(("name", "case"), CASES.values(), ids=CASES)
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
BEFORE = SAME_FOR_BOTH["before"]


@every_case
def test_scores_are_those_of_a_plain_forward(name, case, tiny_backend, reference, random_prompts):
    prompts = random_prompts(2, case.n_tokens)
    expected = case.expected(reference(name), prompts)
    np.testing.assert_allclose(normalised(case.scores(tiny_backend(name), prompts)), expected, atol=1e-4)
    assert expected.std(1).min() > 0.02, "rows that score alike would prove nothing"


@every_architecture
def test_every_supported_architecture_takes_packed_rows(name, tiny_backend):
    assert is_packed(tiny_backend(name))


def is_packed(backend):
    return backend._evaluator.forward.packed is not None


@every_case
def test_models_that_take_no_packed_rows_score_as_well(
    name, case, nothing_packed, tiny_backend, reference, random_prompts
):
    backend, prompts = tiny_backend(name), random_prompts(2, case.n_tokens)
    assert not is_packed(backend)
    expected = case.expected(reference(name), prompts)
    np.testing.assert_allclose(normalised(case.scores(backend, prompts)), expected, atol=1e-4)


@pytest.mark.parametrize("config", ["bloom", "gemma2"])
def test_a_model_that_wants_more_of_its_attention_is_not_packed(config, tiny_folder, tmp_path, random_prompts):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder("gpt2"), model_max_length=64)
    tokenizer.save_pretrained(tmp_path)
    AutoModelForCausalLM.from_config(unusual(config, len(tokenizer))).save_pretrained(tmp_path)
    backend, prompts = LocalBackend(str(tmp_path), precision="fp32", device=DEVICE), random_prompts(2, 5)
    assert not is_packed(backend)
    expected = BEFORE.expected(Reference(tmp_path, "causal"), prompts)
    np.testing.assert_allclose(normalised(BEFORE.scores(backend, prompts)), expected, atol=1e-4)


def unusual(name, vocab_size):
    """Positions as a bias on the attention's scores; or scores that are capped, in a window."""
    if name == "bloom":
        return BloomConfig(vocab_size=vocab_size, hidden_size=32, n_layer=2, n_head=4)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return Gemma2Config(vocab_size=vocab_size, **sizes, num_key_value_heads=2, head_dim=8, sliding_window=4)


@every_architecture
def test_faster_kernels_say_in_half_precision_what_the_plain_ones_say(name, tiny_backend, random_prompts, request):
    prompts = random_prompts(8, 5)
    fast = normalised(BEFORE.scores(tiny_backend(name, precision="bf16"), prompts))
    request.getfixturevalue("nothing_packed")
    plain = normalised(BEFORE.scores(tiny_backend(name, precision="bf16"), prompts))
    assert np.abs(fast - plain).max() < 0.15
    assert rank_correlation(losses(fast), losses(plain)) > 0.9


@every_architecture
@pytest.mark.parametrize("token_budget", [1, 100, 1000])
def test_the_size_of_micro_batches_does_not_matter(name, token_budget, tiny_backend, random_prompts):
    prompts = random_prompts(6, 5)
    expected = BEFORE.scores(tiny_backend(name), prompts)
    scores = BEFORE.scores(tiny_backend(name, token_budget=token_budget), prompts)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


@every_architecture
def test_padding_does_not_matter(name, tiny_backend, random_prompts):
    backend, prompts = tiny_backend(name), random_prompts(1, 5)
    padded = BEFORE.scores(backend, prompts)
    alone = [BEFORE.scores(backend, prompts, [pair])[:, 0] for pair in TEXTS]
    np.testing.assert_allclose(padded, np.stack(alone, axis=1), atol=1e-5)


@every_architecture
def test_the_order_of_rows_and_candidates_does_not_matter(name, tiny_backend, random_prompts):
    backend, prompts = tiny_backend(name), random_prompts(6, 5)
    rows, candidates = [3, 0, 6, 1, 5, 2, 4], [5, 2, 0, 4, 1, 3]
    shuffled = BEFORE.scores(backend, prompts[candidates], [TEXTS[i] for i in rows])
    expected = BEFORE.scores(backend, prompts)[candidates][:, rows]
    np.testing.assert_allclose(shuffled, expected, atol=1e-5)


@every_architecture
def test_the_same_call_gives_the_same_bits(name, tiny_backend, random_prompts):
    backend, prompts = tiny_backend(name), random_prompts(6, 5)
    np.testing.assert_array_equal(BEFORE.scores(backend, prompts), BEFORE.scores(backend, prompts))


@every_architecture
def test_half_precision_ranks_a_population_as_full_precision_does(name, tiny_backend, random_prompts):
    prompts = random_prompts(24, 5, scale=0.5)
    full, half = (losses(BEFORE.scores(tiny_backend(name, precision=p), prompts)) for p in ("fp32", "bf16"))
    assert rank_correlation(full, half) >= 0.95
    assert np.abs(full - half).max() > 0, "bf16 was not used"


def test_a_large_constant_in_the_logits_costs_half_precision_nothing(tiny_backend, random_prompts):
    backend = tiny_backend("bert", precision="bf16")
    bias, found = backend.model.get_output_embeddings().bias, []
    for constant in (0, 128):
        bias.fill_(constant)
        found.append(normalised(BEFORE.scores(backend, random_prompts(4, 5))))
    np.testing.assert_allclose(*found, atol=1e-4)


def losses(scores, labels=(0, 1, 0, 1, 1, 0, 1)):
    """(n,) cross-entropy of a population."""
    return -normalised(scores)[:, np.arange(len(labels)), list(labels)].mean(1)


def rank_correlation(a, b):
    """Spearman's, for values without ties."""
    return np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1]


@pytest.mark.parametrize("name", CAUSAL)
def test_the_part_left_of_the_first_text_is_computed_once_a_candidate(name, tiny_backend, random_prompts):
    backend, widths = tiny_backend(name), []
    encoded = backend.encode(BEFORE.rows(), SENTIMENT)
    watch_batches(backend, lambda count, width: widths.append(count * width))
    backend.label_scores(random_prompts(4, 5), encoded)
    assert encoded.n_prefix >= 5 + 1  # the prompt and its full stop
    alone = encoded.n_tokens - encoded.n_examples * encoded.n_prefix
    assert sum(widths) == 4 * (encoded.n_prefix + alone)


@pytest.mark.parametrize("name", MASKED)
def test_a_masked_model_has_no_prefix_to_share(name, tiny_backend):
    assert tiny_backend(name).encode(BEFORE.rows(), SENTIMENT).n_prefix == 0


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("texts", [TEXTS[:1], TEXTS[:1] * 3, [("bad", ""), ("bad bad", "")]])
def test_prefixes_that_reach_into_the_text_keep_the_read_position(name, texts, tiny_backend, reference, random_prompts):
    prompts = random_prompts(2, 5)
    expected = BEFORE.expected(reference(name), prompts, texts)
    np.testing.assert_allclose(normalised(BEFORE.scores(tiny_backend(name), prompts, texts)), expected, atol=1e-4)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("template", ["{prompt} {text} It was {mask} .", "{text} It was {mask} {prompt}"])
def test_a_causal_template_ends_with_its_mask(name, template, tiny_backend):
    with pytest.raises(BackendError, match=r"put \{mask\} last"):
        tiny_backend(name).encode(Case(template, (5,)).rows(), SENTIMENT)


@pytest.mark.parametrize("name", MASKED)
def test_at_the_anchor_nothing_changes(name, tiny_backend, random_prompts):
    backend, anchor = tiny_backend(name), random_prompts(1, 5)
    expected = BEFORE.scores(backend, anchor)
    np.testing.assert_allclose(BEFORE.scores(backend, anchor, anchor=anchor), expected, atol=1e-5)


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("token_budget", [40, 16384])
def test_differences_from_the_anchor_are_added_after_the_layernorm(
    name, token_budget, tiny_backend, reference, random_prompts
):
    case, backend = SAME_FOR_BOTH["two places"], tiny_backend(name, token_budget=token_budget)
    anchor, offsets = random_prompts(1, 5), random_prompts(2, 5, scale=0.5, seed=1)
    expected = case.expected(reference(name), np.repeat(anchor, 2, axis=0), after_layernorm=offsets)
    plain = case.scores(backend, anchor + offsets)
    anchored = case.scores(backend, anchor + offsets, anchor=anchor)
    np.testing.assert_allclose(normalised(anchored), expected, atol=1e-4)
    assert np.abs(anchored - plain).max() > 0.01


@pytest.mark.parametrize("name", CAUSAL)
def test_a_model_without_that_layernorm_takes_no_anchor(name, tiny_backend, random_prompts):
    with pytest.raises(BackendError, match="LayerNorm after its embeddings"):
        tiny_backend(name).encode(BEFORE.rows(), SENTIMENT, random_prompts(1, 5))


def test_an_anchor_does_not_hinder_rows_without_a_prompt(tiny_backend, random_prompts):
    backend, nothing = tiny_backend("bert"), random_prompts(1, 0)
    case = SAME_FOR_BOTH["no prompt"]
    expected = case.scores(backend, nothing)
    np.testing.assert_array_equal(case.scores(backend, nothing, anchor=random_prompts(1, 5)), expected)


def test_an_anchor_of_another_length_than_the_prompts_is_refused(tiny_backend, random_prompts):
    with pytest.raises(BackendError, match="prompts have 5 tokens, the anchor 7"):
        tiny_backend("bert").encode(BEFORE.rows(), SENTIMENT, random_prompts(1, 7))


def test_rows_with_different_anchors_do_not_know_of_each_other(tiny_backend, random_prompts):
    backend, prompts = tiny_backend("bert"), random_prompts(2, 5)
    anchors = (None, random_prompts(1, 5, seed=1), None, random_prompts(1, 5, seed=2))
    encoded = [backend.encode(BEFORE.rows(), SENTIMENT, anchor) for anchor in anchors]
    first, moved, again, otherwise = (backend.label_scores(prompts, rows) for rows in encoded)
    np.testing.assert_array_equal(again, first)
    assert min(np.abs(moved - first).max(), np.abs(otherwise - moved).max()) > 0.01


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_candidates_have_no_scores(name, tiny_backend, random_prompts):
    assert BEFORE.scores(tiny_backend(name), random_prompts(0, 5)).shape == (0, len(TEXTS), 2)


@pytest.mark.parametrize("shape", [(2, 5, 32), (1, 5, 31), (5, 32)])
def test_an_anchor_is_one_prompt(shape, tiny_backend):
    with pytest.raises(BackendError, match=r"expected \(1, T, 32\)"):
        tiny_backend("bert").encode(BEFORE.rows(), SENTIMENT, np.zeros(shape, np.float32))


def watch_batches(backend, seen):
    """Call `seen(sequences, width)` before each forward pass of the model."""
    watch = lambda module, args, kwargs: seen(*kwargs["inputs_embeds"].shape[:2])  # noqa: E731
    backend.trunk.register_forward_pre_hook(watch, with_kwargs=True)


def allow_tokens(backend, limit):
    """Give the model memory for so many tokens at once; returns the list of refused batches."""
    refused = []

    def check(count, width):
        if count * width > limit:
            refused.append(count * width)
            raise torch.OutOfMemoryError("out of memory")

    watch_batches(backend, check)
    return refused


@every_architecture
def test_out_of_memory_halves_the_batches_for_good(name, tiny_backend, random_prompts):
    backend, prompts = tiny_backend(name), random_prompts(8, 5)
    expected = BEFORE.scores(backend, prompts)
    refused = allow_tokens(backend, 200)
    np.testing.assert_allclose(BEFORE.scores(backend, prompts), expected, atol=1e-5)
    assert refused
    refused.clear()
    BEFORE.scores(backend, prompts)
    assert not refused


def test_one_sequence_that_does_not_fit_into_memory_is_an_error(tiny_backend, random_prompts):
    backend = tiny_backend("bert")
    allow_tokens(backend, 10)
    with pytest.raises(BackendError, match=r"one sequence of \d+ tokens does not fit into memory"):
        BEFORE.scores(backend, random_prompts(2, 5))


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_scoring_leaves_the_model_as_it_was_even_after_an_error(name, tiny_backend, random_prompts):
    backend = tiny_backend(name)
    BEFORE.scores(backend, random_prompts(2, 5))
    backend.trunk.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="a broken kernel"):
        BEFORE.scores(backend, random_prompts(2, 5))
    assert backend.info.fingerprint == tiny_backend(name).info.fingerprint


def fail(module, args):
    raise RuntimeError("a broken kernel")


@pytest.fixture(params=sorted(bundled_models()))
def bundled(request):
    """Name, folder, kind, and SST-2 rows of each model that ships."""
    from bbt.tasks.builtin import builtin_task
    from bbt.tasks.data import bundled_splits

    folder = bundled_models()[request.param]
    kind = "masked" if "MaskedLM" in (folder / "config.json").read_text() else "causal"
    task = builtin_task("sst2", kind)
    examples = bundled_splits("sst2", 16, 42, task.label_names).train
    return SimpleNamespace(
        name=request.param,
        case=Case(task.template.source, (10,), words=tuple(f" {word}" for word in task.label_words)),
        texts=[(example.text, "") for example in examples],
        labels=[example.label for example in examples],
        reference=Reference(folder, kind),
    )


def prompts_near_words(backend, n, seed=0):
    """What a search asks for: the embeddings of ten tokens, and steps away from them of growing size."""
    rng = np.random.default_rng(seed)
    start = backend.embed_ids(rng.choice(backend.ordinary_ids(), 10))
    steps = rng.standard_normal((n, *start.shape[1:])) * np.linspace(0, 3, n)[:, None, None]
    return (start + steps * backend.info.embedding_std).astype(np.float32)


def test_a_bundled_model_scores_as_in_plain_transformers(bundled):
    backend = LocalBackend(model=bundled.name, precision="fp32", device=DEVICE)
    prompts, texts = prompts_near_words(backend, 2), bundled.texts[:6]
    expected = bundled.case.expected(bundled.reference, prompts, texts)
    scores = bundled.case.scores(backend, prompts, texts)
    np.testing.assert_allclose(normalised(scores), expected, atol=1e-4)
