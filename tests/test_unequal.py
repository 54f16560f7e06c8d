"""What a GPU's kernel for sequences of unequal lengths is given, and what is made of its answers, on any device: the
kernel's place is taken by plain products, one sequence after the other."""

import logging

import numpy as np
import pytest
import torch
from reference import normalised
from test_local_backend import BEFORE, SAME_FOR_BOTH, SENTIMENT, TEXTS
from tiny_models import ARCHITECTURES, CAUSAL, DEVICE
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from backends.local import unequal
from bbt.backend import Segment
from bbt.errors import BackendError

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def one_by_one(q, k, v, q_begins, k_begins, q_most, k_most, scale, causal):
    """As flash attention defines it: a causal query sees the keys up to its own, counted from the end."""
    heads = q.shape[1]
    k, v = (one.repeat_interleave(heads // one.shape[1], dim=1) for one in (k, v))
    out, sums = torch.empty_like(q), torch.empty(q.shape[:2], device=q.device)
    for i in range(len(q_begins) - 1):
        rows, keys = slice(*q_begins[i : i + 2].tolist()), slice(*k_begins[i : i + 2].tolist())
        assert rows.stop - rows.start <= q_most
        assert keys.stop - keys.start <= k_most
        scores = torch.einsum("qhd,khd->hqk", q[rows].float(), k[keys].float()) * scale
        if causal:
            n, m = scores.shape[1:]
            scores = scores.masked_fill(
                torch.ones(n, m, dtype=torch.bool, device=q.device).triu(1 + m - n), float("-inf")
            )
        out[rows] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[keys].float()).to(q.dtype)
        sums[rows] = scores.logsumexp(-1).T
    assert (q_begins[-1], k_begins[-1]) == (len(q), len(k))
    return out, sums


@pytest.fixture
def kernel(monkeypatch):
    """Backends made from now on find a kernel; the list grows with each of its calls."""
    calls = []

    def counted(*args):
        calls.append(args)
        return one_by_one(*args)

    monkeypatch.setattr("backends.local.check.kernel_for", lambda words: counted)
    return calls


@every_architecture
@pytest.mark.parametrize("case", [SAME_FOR_BOTH["before"], SAME_FOR_BOTH["two places"], SAME_FOR_BOTH["after"]])
@pytest.mark.parametrize("token_budget", [150, 4096])
def test_scores_are_plain_ones(name, case, token_budget, kernel, tiny_backend, reference, random_prompts):
    backend, prompts = tiny_backend(name, token_budget=token_budget), random_prompts(4, 5)
    encoded = backend.encode(case.rows(), [w.strip() for w in case.words])
    kernel.clear()
    found = normalised(backend.label_scores(prompts, encoded))
    np.testing.assert_allclose(found, case.expected(reference(name), prompts), atol=1e-4)
    assert kernel


@every_architecture
def test_all_lengths_take_one_call_a_layer_and_a_prefix_one_more(name, kernel, tiny_backend, random_prompts):
    backend = tiny_backend(name)
    encoded = backend.encode(BEFORE.rows(), SENTIMENT)
    assert len(set(encoded.lengths)) > 3
    kernel.clear()
    backend.label_scores(random_prompts(3, 5), encoded)
    n_layers = 2
    prefix_alone = n_layers - 1  # the last layer's keys and values are all that is wanted
    assert len(kernel) == (2 * n_layers + prefix_alone if name in CAUSAL else n_layers)


@every_architecture
def test_half_precision_is_as_near_as_the_path_by_lengths(name, tiny_backend, random_prompts, monkeypatch):
    prompts = random_prompts(4, 5)
    exact, by_lengths = (BEFORE.scores(tiny_backend(name, precision=p), prompts) for p in ("fp32", "bf16"))
    monkeypatch.setattr("backends.local.check.kernel_for", lambda words: one_by_one)
    found = BEFORE.scores(tiny_backend(name, precision="bf16"), prompts)
    error = np.abs(normalised(found) - normalised(exact)).max()
    assert error < max(0.02, 2 * np.abs(normalised(by_lengths) - normalised(exact)).max())


@every_architecture
def test_deep_prompts_go_the_same_way(name, tiny_backend, random_prompts, monkeypatch):
    prompts = random_prompts(6, 5).reshape(3, 2, 5, 32)
    prompts[:, 0] = prompts[:1, 0]
    encoded = tiny_backend(name).encode(BEFORE.rows(), SENTIMENT)
    expected = tiny_backend(name).deep_label_scores(prompts, encoded)
    monkeypatch.setattr("backends.local.check.kernel_for", lambda words: one_by_one)
    backend = tiny_backend(name)
    encoded = backend.encode(BEFORE.rows(), SENTIMENT)
    for _ in range(2):  # the second time from what is kept
        np.testing.assert_allclose(backend.deep_label_scores(prompts, encoded), expected, atol=1e-4)


@pytest.mark.parametrize("name", CAUSAL)
def test_targets_of_several_tokens_go_the_same_way(name, kernel, tiny_backend, random_prompts, monkeypatch):
    prompt, said = Segment("prompt", n_tokens=5), Segment("literal", " . It was ")
    rows = [
        (prompt, Segment("literal", " . "), Segment("text", text), said, Segment("target", target))
        for (text, _), target in zip(TEXTS[:4], ("a good film", "bad", "great , or not", "bad"), strict=True)
    ]
    prompts = random_prompts(3, 5)
    backend = tiny_backend(name)
    encoded = backend.encode_pairs(rows)
    kernel.clear()
    found = backend.target_log_likelihoods(prompts, encoded)
    assert kernel
    monkeypatch.undo()
    plain = tiny_backend(name)
    np.testing.assert_allclose(found, plain.target_log_likelihoods(prompts, plain.encode_pairs(rows)), atol=1e-4)


@pytest.mark.parametrize("name", CAUSAL)
def test_several_targets_of_a_context_go_beside_it(name, kernel, tiny_backend, random_prompts, monkeypatch):
    """Micro-batches whose trees need masks attend length by length, the others by the kernel."""
    prompt, said = Segment("prompt", n_tokens=5), Segment("literal", " . It was ")
    rows = [
        (prompt, Segment("literal", " . "), Segment("text", text), said, Segment("target", target))
        for (text, _), targets in zip(
            TEXTS[:3], (("a good film", "not bad , or"), ("bad",), ("great , or not",)), strict=True
        )
        for target in targets
    ]
    prompts = random_prompts(3, 5)
    backend = tiny_backend(name, token_budget=30)
    encoded = backend.encode_pairs(rows)
    assert [tree.is_chain for tree in encoded.forest.trees] == [False, True, True]
    kernel.clear()
    found = backend.target_log_likelihoods(prompts, encoded)
    assert kernel
    monkeypatch.undo()
    plain = tiny_backend(name)
    np.testing.assert_allclose(found, plain.target_log_likelihoods(prompts, plain.encode_pairs(rows)), atol=1e-4)


@every_architecture
def test_a_kernel_that_is_wrong_or_fails_is_not_used(
    name, tiny_backend, reference, random_prompts, monkeypatch, caplog
):
    prompts = random_prompts(2, 5)

    def wrong(q, *rest):
        return one_by_one(q.roll(1, 0), *rest)

    def failing(*args):
        raise RuntimeError("no kernel image is available")

    for kernel in (wrong, failing):
        monkeypatch.setattr("backends.local.check.kernel_for", lambda words, kernel=kernel: kernel)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            backend = tiny_backend(name)
        assert "attention of unequal lengths in one call is not used here" in caplog.text
        found = normalised(BEFORE.scores(backend, prompts))
        np.testing.assert_allclose(found, BEFORE.expected(reference(name), prompts), atol=1e-4)


class Watch(TorchDispatchMode):
    """Notes what a GPU would make the host wait for, or copy from its memory: numbers, counts of places, constants."""

    WAITS = (
        "_local_scalar_dense",
        "nonzero",
        "lift_fresh",
        "is_nonzero",
        "masked_select",
        "unique",
        "repeat_interleave",
    )

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(name.startswith(wait) for wait in self.WAITS):
            self.seen.add(name)
        return func(*args, **(kwargs or {}))


@every_architecture
@pytest.mark.parametrize("anchored", [False, True])
def test_an_evaluation_makes_the_host_wait_once(name, anchored, tiny_backend, random_prompts):
    """It is then fit for a CUDA graph: what comes before the scores are taken back is watched, a kernel's place being
    taken by what asks for nothing."""

    def kernel(q, k, v, *rest):
        return q.clone(), q[..., 0].float()

    if anchored and name in CAUSAL:
        pytest.skip("a causal LM has no LayerNorm after its embeddings")
    backend = tiny_backend(name)
    anchor = random_prompts(1, 5, seed=1) if anchored else None
    encoded = backend.encode(BEFORE.rows(), SENTIMENT, anchor)
    watch, vectors = Watch(), random_prompts(3, 5)
    backend.label_scores(vectors, encoded)
    backend._evaluator.forward.kernel = kernel
    encoded.plans.clear()
    backend.label_scores(vectors, encoded)
    given = torch.from_numpy(vectors)[:, None].to(DEVICE)
    with torch.inference_mode(), watch:
        scores = backend._evaluator._scores_of_block(given, encoded, None, backend.token_budget)
    assert not watch.seen
    with watch:
        scores.sum().item()
    assert watch.seen == {"_local_scalar_dense"}


def test_a_cpu_and_full_precision_have_no_kernel():
    assert unequal.kernel_for(torch.empty(2, 2, dtype=torch.bfloat16)) is None
    assert unequal.kernel_for(torch.empty(2, 2, device="meta")) is None


def test_the_torch_kernel_is_asked_as_its_documentation_says(monkeypatch):
    """PyTorch's own function, with its CUDA operator replaced by plain products of the same signature."""
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(7, 4, 8, generator=generator)
    k, v = torch.randn(2, 7, 2, 8, generator=generator).unbind()
    begins = torch.tensor([0, 3, 7], dtype=torch.int32)

    def varlen_attn(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1),
        enable_gqa=False, **rest,
    ):  # fmt: skip
        assert enable_gqa
        assert return_aux == varlen.AuxRequest(lse=True)
        out, sums = one_by_one(
            query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, {(-1, 0): True, (-1, -1): False}[window_size]
        )
        return out, sums.T

    assert set(varlen_attn.__kwdefaults__) <= set(varlen.varlen_attn.__kwdefaults__), "PyTorch has other arguments"
    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    for causal in (True, False):
        out, sums = unequal._of_torch()(q, k, v, begins, begins, 4, 4, 0.3, causal)
        assert sums.shape == (7, 4)
        for rows in (slice(0, 3), slice(3, 7)):
            one, keys, values = (x[rows].transpose(0, 1)[None] for x in (q, k, v))
            expected = scaled_dot_product_attention(one, keys, values, is_causal=causal, scale=0.3, enable_gqa=True)
            torch.testing.assert_close(out[rows], expected[0].transpose(0, 1))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_memory_that_runs_out_in_mid_run_changes_no_score(name, kernel, tiny_backend, random_prompts):
    backend, prompts = tiny_backend(name), random_prompts(6, 5)
    encoded = backend.encode(BEFORE.rows(), SENTIMENT)
    expected, budget = backend.label_scores(prompts, encoded), backend.token_budget

    def check(module, args, kwargs):
        if kwargs["inputs_embeds"].shape[1] > 200:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    backend.trunk.register_forward_pre_hook(check, with_kwargs=True)
    np.testing.assert_allclose(backend.label_scores(prompts, encoded), expected, atol=1e-5)
    assert backend.token_budget < budget
    assert {key[2] for key in encoded.plans if key[0] == "rows"} == {backend.token_budget}


def test_one_sequence_too_long_is_still_an_error(kernel, tiny_backend, random_prompts):
    backend = tiny_backend("bert", token_budget=8)
    backend.trunk.register_forward_pre_hook(fail)
    with pytest.raises(BackendError, match="does not fit into memory"):
        BEFORE.scores(backend, random_prompts(1, 5))


def fail(*_):
    raise torch.OutOfMemoryError("CUDA out of memory.")
