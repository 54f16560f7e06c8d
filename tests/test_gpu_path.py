"""What a GPU's path does beside its kernels: graphs of what is asked for again and again, a prompt space that stays on
the device, budgets from free memory, fp32 that is fp32. A CPU runs all of it but CUDA's own calls."""

import json
import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reference import normalised
from test_local_backend import BEFORE, SENTIMENT
from tiny_models import ARCHITECTURES, DEVICE
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from backends.local import backend as backend_module
from backends.local import device, graphs, loading, unequal
from backends.local.device import HeldSpace, budget_within, exact_products
from backends.local.forward import Forward
from backends.local.graphs import AFTER, MOST, Graphs, Recorded
from backends.local.kernels import norms_in_one_kernel
from bbt import api
from bbt.config import make_config
from bbt.errors import BackendError
from bbt.spaces.soft import LatentBackend, PromptSpace, random_projection

needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU: BBT_TEST_DEVICE=cuda")


@pytest.fixture
def space(random_prompts):
    p0 = random_prompts(1, 5, seed=3)
    return PromptSpace(p0, random_projection(0, p0.size, 6, "normal", 0.1))


def latents(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 6))


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_latents_score_as_their_prompts_do(name, tiny_backend, space, monkeypatch):
    backend = tiny_backend(name)
    assert isinstance(backend, LatentBackend)
    encoded = backend.encode(BEFORE.rows(), SENTIMENT)
    expected = backend.label_scores(space.prompts(latents(4)), encoded)
    if DEVICE == "cpu":  # where the host makes the prompts, bit for bit
        np.testing.assert_array_equal(backend.latent_scores(latents(4), space, encoded), expected)
    monkeypatch.setattr(backend_module, "has_room_for", lambda space, device: True)
    other = PromptSpace(space.p0, space.matrix * 2)
    for _ in range(2):
        np.testing.assert_allclose(backend.latent_scores(latents(4), space, encoded), expected, atol=1e-5)
        found = backend.latent_scores(latents(4), other, encoded)
        np.testing.assert_allclose(found, backend.label_scores(other.prompts(latents(4)), encoded), atol=1e-5)
    assert backend.latent_scores(latents(0), space, encoded).shape == (0, len(expected[0]), 2)


def test_a_space_of_another_prompt_length_is_refused(tiny_backend, space):
    backend = tiny_backend("bert")
    encoded = backend.encode(BEFORE.rows()[:2], SENTIMENT)
    longer = PromptSpace(np.repeat(space.p0, 2, axis=1), np.repeat(space.matrix, 2, axis=0))
    with pytest.raises(BackendError, match=r"prompts have shape \(1, 10, 32\), expected \(n, 5, 32\)"):
        backend.latent_scores(latents(2), longer, encoded)


def test_a_held_space_is_the_space(space):
    held = HeldSpace(space, torch.device(DEVICE))
    found = held.prompts(torch.from_numpy(latents(3)).float().to(DEVICE))
    np.testing.assert_allclose(found.cpu().numpy(), space.prompts(latents(3)), atol=1e-6)


@pytest.fixture
def recordings(monkeypatch):
    """Evaluators record from now on, and a recording computes when it is run, as a graph does; the list grows with
    each."""
    made = []

    def recorded(rows, vectors, compute, memory):
        given = vectors.clone()
        found = compute(given).zero_()
        made.append(tuple(vectors.shape))
        return Recorded(rows, given, found, lambda: found.copy_(compute(given)), memory or "memory", None)

    monkeypatch.setattr(graphs, "recorded", recorded)
    return made


@pytest.fixture
def graphed(tiny_backend, recordings):
    def make(name):
        backend = tiny_backend(name)
        backend._evaluator.graphs = Graphs()
        return backend

    return make


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_evaluation_asked_for_again_is_recorded_and_says_the_same(name, graphed, recordings, random_prompts):
    backend = graphed(name)
    encoded, prompts = (
        backend.encode(BEFORE.rows(), SENTIMENT),
        [random_prompts(4, 5, seed=s) for s in range(AFTER + 3)],
    )
    expected = [backend.label_scores(one, backend.encode(BEFORE.rows(), SENTIMENT)) for one in prompts]
    recordings.clear()
    for i, one in enumerate(prompts):
        np.testing.assert_array_equal(backend.label_scores(one, encoded), expected[i])
        assert len(recordings) == int(i >= AFTER)
    with backend.step_by_step():
        np.testing.assert_array_equal(backend.label_scores(prompts[0], encoded), expected[0])
    np.testing.assert_allclose(backend.label_scores(prompts[0][:2], encoded), expected[0][:2], atol=1e-5)


def test_the_oldest_recording_goes_for_a_new_one(graphed, recordings, random_prompts):
    backend = graphed("bert")
    encoded = backend.encode(BEFORE.rows(), SENTIMENT)
    for n in range(1, MOST + 2):
        for _ in range(AFTER + 1):
            backend.label_scores(random_prompts(n, 5), encoded)
    held = backend._evaluator.graphs._held
    assert [key[2][0] for key in held] == list(range(2, MOST + 2))


def test_what_cannot_be_recorded_goes_on_step_by_step(graphed, random_prompts, monkeypatch, caplog):
    backend = graphed("gpt2")
    encoded, prompts = backend.encode(BEFORE.rows(), SENTIMENT), random_prompts(3, 5)

    def refuse(*_):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "recorded", refuse)
    with caplog.at_level(logging.WARNING):
        found = [backend.label_scores(prompts, encoded) for _ in range(AFTER + 3)]
    assert caplog.text.count("cannot become a CUDA graph: CUDA error") == 1
    for one in found:
        np.testing.assert_array_equal(one, found[0])


def test_memory_that_runs_out_lets_go_of_graphs(graphed, recordings, random_prompts):
    backend, prompts = graphed("bert"), random_prompts(6, 5)
    encoded = backend.encode(BEFORE.rows(), SENTIMENT)
    for _ in range(AFTER + 1):
        expected = backend.label_scores(prompts, encoded)
    held = backend._evaluator.graphs._held
    (recording,) = held.values()

    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory.")

    object.__setattr__(recording, "replay", fail)
    budget = backend.token_budget
    np.testing.assert_allclose(backend.label_scores(prompts, encoded), expected, atol=1e-5)
    assert not held
    assert backend.token_budget == budget // 2


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_cuda_graph_says_what_single_steps_say(name, precision, tiny_backend, random_prompts):
    backend = tiny_backend(name, precision=precision)
    encoded = backend.encode(BEFORE.rows(), SENTIMENT)
    for seed in range(AFTER + 3):
        prompts = random_prompts(4, 5, seed=seed)
        found = backend.label_scores(prompts, encoded)
        with backend.step_by_step():
            expected = backend.label_scores(prompts, encoded)
        np.testing.assert_allclose(normalised(found), normalised(expected), atol=1e-5)
    assert len(backend._evaluator.graphs._held) == 1, "it was not recorded"


def test_a_budget_is_a_power_of_two_that_memory_has_room_for(tiny_backend):
    model = tiny_backend("bert").model
    a_token = 4 * (8 * 32 + 4 * 64)
    assert [budget_within(n * a_token, model) for n in (0, 3000, 4095, 5000, 10**9)] == [1024, 2048, 2048, 4096, 65536]


def test_a_cpu_keeps_to_its_caches(tiny_backend):
    if DEVICE == "cpu":
        assert tiny_backend("bert").token_budget == device.CPU_TOKENS


@pytest.fixture
def tf32_allowed():
    products = torch.backends.cuda.matmul
    if not hasattr(products, "fp32_precision"):
        pytest.skip("PyTorch before 2.9 has another name for it")
    was = products.fp32_precision
    products.fp32_precision = "tf32"
    yield products
    products.fp32_precision = was


def test_products_of_a_gpu_are_exact_whatever_the_process_allows(tf32_allowed):
    with exact_products(torch.device("cuda")):
        assert tf32_allowed.fp32_precision == "ieee"
    assert tf32_allowed.fp32_precision == "tf32"
    with exact_products(torch.device("cpu")):
        assert tf32_allowed.fp32_precision == "tf32"


def test_rms_norm_is_one_kernel_where_it_gives_the_same_numbers():
    class Llamas(torch.nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm = norm(48, eps=1e-5).bfloat16()
            torch.nn.init.normal_(self.norm.weight)

    llama, gemma = Llamas(LlamaRMSNorm), Llamas(Gemma2RMSNorm)
    (twin,) = norms_in_one_kernel(llama).values()
    states = torch.randn(3, 7, 48).bfloat16()
    torch.testing.assert_close(twin(states), llama.norm(states), rtol=0.02, atol=0.02)
    assert not norms_in_one_kernel(gemma)


@pytest.mark.parametrize(("amx", "avx", "expected"), [(1, 0, "bf16"), (0, 1, "bf16"), (0, 0, "fp32")])
def test_auto_takes_bf16_where_a_cpu_has_instructions_for_it(amx, avx, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx), raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx), raising=False)
    assert loading.resolve_precision("auto", torch.device("cpu")) is loading.PRECISIONS[expected]
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert loading.resolve_precision("auto", torch.device("cpu")) is torch.float32


def test_a_model_that_one_device_has_no_room_for_says_what_to_do(tiny_backend, monkeypatch):
    def full(model, *args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr("transformers.PreTrainedModel.to", full)
    with pytest.raises(
        BackendError, match=r"takes 0\.0 GB in float32, for which .* has no room.*precision: bf16.*vLLM"
    ):
        tiny_backend("bert")


def test_a_run_whose_memory_ran_out_goes_on_and_resumes(tiny_folder, tmp_path, monkeypatch, caplog):
    settings = {
        "task": {"name": "sst2", "label_words": ["bad", "great"]},
        "data": {"k": 4},
        "model": {"name": str(tiny_folder("gpt2")), "options": {"device": DEVICE, "precision": "fp32"}},
        "prompt": {"n_prompt_tokens": 3, "intrinsic_dim": 10, "n_screened": 1},
        "optimizer": {"population_size": 6},
        "evaluation": {"rows": 8},
    }

    def run(name, queries):
        return api.run(make_config({**settings, "name": name, "budget": {"queries": queries}}), tmp_path).folder

    def events(folder):
        return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]

    whole, compute, large = events(run("whole", 25)), Forward.__call__, []

    def crowded(forward, embeddings, call):
        if len(embeddings) > 200:
            large.append(len(embeddings))
        if len(large) > 1 and len(embeddings) > 200:  # from the second generation on
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return compute(forward, embeddings, call)

    monkeypatch.setattr(Forward, "__call__", crowded)
    folder = run("part", 13)
    part = events(folder)
    assert "memory ran out: micro-batches have" in caplog.text
    resumed = events(api.resume(folder, queries=25).folder)
    assert resumed[: len(part)] == part
    losses = [[e["losses"] for e in log if e["event"] == "generation"] for log in (whole, resumed)]
    np.testing.assert_allclose(*losses, atol=1e-4)


GPU = torch.device("cuda")


@pytest.fixture
def driver(monkeypatch):
    """What a GPU's driver would answer, so that a CPU comes to every branch on it; its numbers may be changed."""
    answers = {"capability": (9, 0), "free": 80 * 10**9, "capturing": False, "let_go": 0, "peak": 3e6}
    for name, answer in {
        "is_available": lambda: True,
        "get_device_capability": lambda device: answers["capability"],
        "mem_get_info": lambda device: (answers["free"], 80 * 10**9),
        "is_current_stream_capturing": lambda: answers["capturing"],
        "max_memory_allocated": lambda device: answers["peak"],
        "empty_cache": lambda: answers.update(let_go=answers["let_go"] + 1),
    }.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    return answers


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_takes_the_gpu_and_bf16_from_ampere_on(capability, expected, driver):
    driver["capability"] = capability
    assert loading.resolve_device("auto") == loading.resolve_device("cuda") == GPU
    assert loading.resolve_precision("auto", GPU) is loading.PRECISIONS[expected]


@pytest.mark.parametrize(
    ("capability", "dtype", "has_one"),
    [((9, 0), torch.bfloat16, True), ((9, 0), torch.float32, False), ((7, 5), torch.float16, False)],
)
def test_a_gpu_from_ampere_on_has_a_kernel_for_half_precision(capability, dtype, has_one, driver, monkeypatch):
    driver["capability"] = capability
    monkeypatch.setattr(unequal, "_of_torch", lambda: None)
    monkeypatch.setattr(unequal, "_of_flash_attn", lambda: print)
    words = SimpleNamespace(device=GPU, dtype=dtype)
    assert (unequal.kernel_for(words) is print) == has_one


def test_a_gpu_without_a_kernel_says_what_brings_one(driver, monkeypatch, caplog):
    monkeypatch.setattr(unequal, "_of_torch", lambda: None)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with caplog.at_level(logging.WARNING):
        assert unequal.kernel_for(SimpleNamespace(device=GPU, dtype=torch.bfloat16)) is None
    assert "PyTorch 2.11 or later has one, and so has flash-attn" in caplog.text


def test_the_budget_is_what_half_of_the_free_memory_has_room_for(driver, tiny_backend):
    model = tiny_backend("bert").model
    a_token = 4 * (8 * 32 + 4 * 64)
    driver["free"] = 2 * 5000 * a_token
    assert device.default_budget(model, GPU) == 4096
    assert driver["let_go"] == 1, "what loading leaves behind is free, too"
    assert device.default_budget(model, torch.device("mps")) == device.OTHER_TOKENS


def test_a_space_stays_on_a_gpu_that_has_room_for_it(driver, space):
    driver["free"] = space.matrix.nbytes * device.SHARE_OF_A
    assert device.has_room_for(space, GPU)
    driver["free"] -= 1
    assert not device.has_room_for(space, GPU)


def test_nothing_is_copied_from_the_host_into_a_graph(driver):
    driver["capturing"] = True
    with pytest.raises(RuntimeError, match="a CUDA graph would copy from memory of the host"):
        device.on_device(np.zeros(3), GPU)


def test_the_peak_is_that_of_all_gpus_that_hold_the_model(driver, tiny_backend, monkeypatch):
    backend = tiny_backend("bert", device="cpu")
    assert backend.peak_memory_mb() is None
    monkeypatch.setattr(backend_module, "devices_of", lambda model: [torch.device("cuda:0"), torch.device("cuda:1")])
    assert backend.peak_memory_mb() == 6.0


def test_memory_that_runs_out_on_a_gpu_is_given_back(driver, tiny_backend, random_prompts):
    backend, failed = tiny_backend("bert", device="cpu"), []
    encoded = backend.encode(BEFORE.rows(), SENTIMENT)
    expected = backend.label_scores(random_prompts(4, 5), encoded)

    def once(*_):
        if not failed:
            failed.append(True)
            raise RuntimeError("CUDA error: out of memory")

    backend.trunk.register_forward_pre_hook(once)
    np.testing.assert_allclose(backend.label_scores(random_prompts(4, 5), encoded), expected, atol=1e-5)
    assert driver["let_go"] == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_whose_norms_are_one_kernel_is_as_near(precision, tiny_backend, random_prompts, monkeypatch):
    """The packed copy of a Llama as a GPU has it; the check at loading holds it to the plain forward pass."""
    prompts = random_prompts(3, 5)
    exact, usual = (normalised(BEFORE.scores(tiny_backend("llama", precision=p), prompts)) for p in ("fp32", precision))
    monkeypatch.setattr("backends.local.packing.faster_modules", norms_in_one_kernel)
    backend = tiny_backend("llama", precision=precision)
    assert "_RMSNorm" in {type(module).__name__ for module in backend.trunk.modules()}
    error = np.abs(normalised(BEFORE.scores(backend, prompts)) - exact).max()
    assert error < max(1e-4, 2 * np.abs(usual - exact).max())
