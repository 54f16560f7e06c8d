"""A model that is spread over several places says what it says in one. Here they are a CPU and the disk: the hooks that
fetch weights layer by layer are the ones that take hidden states from GPU to GPU."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from test_local_backend import BEFORE, SAME_FOR_BOTH, SENTIMENT
from test_targets import ROWS, row
from tiny_models import ARCHITECTURES, DEVICE, kind_of
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from backends.local import LocalBackend
from bbt.backend import Decoding
from bbt.errors import BackendError

pytest.importorskip("accelerate", reason="accelerate is not installed: pip install 'bbt-prompt[large]'")
REST = {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
ASKED = [row(*pair, n_tokens=5) for pair in ROWS]
UNPROMPTED = SAME_FOR_BOTH["no prompt"].rows()


@pytest.fixture
def spread(tiny_folder):
    """name -> a LocalBackend over the tiny model whose second layer lies on disk, and what other `parts` are named."""

    def make(name, parts=(), **options):
        folder = tiny_folder(name)
        auto = AutoModelForMaskedLM if kind_of(name) == "masked" else AutoModelForCausalLM
        model = auto.from_config(AutoConfig.from_pretrained(folder))
        (layers,) = (module for module in model.base_model.modules() if type(module).__name__ == "ModuleList")
        path = next(path for path, module in model.named_modules() if module is layers)
        device_map = dict(placed(model, (f"{path}.1", *parts)))
        return LocalBackend(str(folder), device_map=device_map, **{"precision": "fp32", **options})

    return make


def placed(module, on_disk, path=""):
    """Yield the largest parts of a module that lie whole on the disk or not at all, each with its place."""
    if path in on_disk or not any(part.startswith(f"{path}." if path else "") for part in on_disk):
        yield path, "disk" if path in on_disk else "cpu"
        return
    for name, child in module.named_children():
        yield from placed(child, on_disk, f"{path}.{name}" if path else name)


def weights_on_disk(backend):
    return [name for name, weight in backend.model.named_parameters() if weight.is_meta]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_spread_model_scores_as_in_one_place(name, spread, tiny_backend, random_prompts):
    backend, whole, prompts = spread(name), tiny_backend(name, device="cpu"), random_prompts(3, 5)
    assert weights_on_disk(backend)
    assert backend._evaluator.forward.packed is not None, "it goes the fast way"
    encoded = backend.encode(BEFORE.rows(), SENTIMENT)
    expected = whole.label_scores(prompts, whole.encode(BEFORE.rows(), SENTIMENT))
    for _ in range(2):
        np.testing.assert_array_equal(backend.label_scores(prompts, encoded), expected)
    assert backend.info == whole.info
    deep = np.repeat(random_prompts(3, 5)[:, None], 2, axis=1)
    np.testing.assert_array_equal(
        backend.deep_label_scores(deep, encoded),
        whole.deep_label_scores(deep, whole.encode(BEFORE.rows(), SENTIMENT)),
    )


@pytest.mark.parametrize(("name", "parts"), [("gpt2", ("transformer.ln_f",)), ("llama", ("model.norm", "lm_head"))])
def test_a_head_is_fetched_from_the_disk_as_well(name, parts, spread, tiny_backend, random_prompts):
    backend, whole, prompts = spread(name, parts), tiny_backend(name, device="cpu"), random_prompts(3, 5)
    found, expected = (
        (
            one.label_scores(prompts, one.encode(BEFORE.rows(), SENTIMENT)),
            one.target_log_likelihoods(prompts, one.encode_pairs(ASKED)),
            one.features(one.encode(UNPROMPTED, SENTIMENT))[0].hidden_states,
            *one.token_log_likelihoods(one.encode(UNPROMPTED, SENTIMENT)),
        )
        for one in (backend, whole)
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert backend.info == whole.info
    said = [one.generate(prompts[:1], one.encode_contexts(ASKED, 4), Decoding(4)) for one in (backend, whole)]
    assert said[0] == said[1]


def test_threads_take_turns(spread, random_prompts):
    backend = spread("gpt2")
    encoded, unprompted = (backend.encode(rows, SENTIMENT) for rows in (BEFORE.rows(), UNPROMPTED))
    prompts = [random_prompts(3, 5, seed=seed) for seed in range(6)]
    expected = [backend.label_scores(one, encoded) for one in prompts]
    with ThreadPoolExecutor(3) as threads:
        likely = threads.submit(backend.token_log_likelihoods, unprompted)
        found = list(threads.map(lambda one: backend.label_scores(one, encoded), prompts))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(likely.result()[0], backend.token_log_likelihoods(unprompted)[0])


@pytest.mark.parametrize("device_map", [{"": "cpu"}, "sequential"])
def test_a_map_of_one_device_is_that_device(device_map, tiny_folder, tiny_backend, random_prompts):
    if device_map == "sequential" and DEVICE != "cpu":
        pytest.skip("it would take the GPU")
    backend = LocalBackend(str(tiny_folder("gpt2")), precision="fp32", device_map=device_map)
    whole, prompts = tiny_backend("gpt2", device="cpu"), random_prompts(3, 5)
    scores = [one.label_scores(prompts, one.encode(BEFORE.rows(), SENTIMENT)) for one in (backend, whole)]
    np.testing.assert_array_equal(*scores)
    assert backend.info == whole.info


def test_auto_takes_half_precision_untried_where_the_chip_is_fast_with_it(spread, monkeypatch):
    monkeypatch.setattr("backends.local.loading._is_fast_in_bf16", lambda device: True)
    with pytest.warns(UserWarning, match="precision auto: bfloat16, which was not compared with fp32.*device_map"):
        backend = spread("gpt2", precision="auto")
    assert backend.info.precision == "bfloat16"


def test_gradients_need_one_device(spread):
    with pytest.raises(BackendError, match="gradients need the model on one device: leave device_map out"):
        spread("bert").trainable()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"device_map": "atuo"},
            r"unknown device_map 'atuo'. Did you mean 'auto'\? Valid: auto, balanced.*each module",
        ),
        ({"device_map": "auto", "device": "cpu"}, "give device: cpu or device_map, not both"),
        (
            {"device_map": {"model.embed_tokens": "cpu", "model.layers": "disk"}},
            "does not give any device for the following parameters",
        ),
        (
            {"device_map": {"model.embed_tokens": "disk", "model.layers": "cpu", **REST}},
            "puts the word embeddings where nothing computes",
        ),
    ],
)
def test_what_cannot_be_spread_so_is_one_line(options, message, tiny_folder):
    with pytest.raises(BackendError, match=message) as caught:
        LocalBackend(str(tiny_folder("llama")), precision="fp32", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "message"), [("t5", "is an encoder-decoder"), ("random", "is drawn on one device")])
def test_some_models_are_not_spread(name, message, tiny_folder):
    model = "random:gpt2" if name == "random" else str(tiny_folder(name))
    with pytest.raises(BackendError, match=f"{message}.*leave device_map out"):
        LocalBackend(model, precision="fp32", device_map="auto")


def test_a_missing_package_is_named(tiny_folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"needs the package accelerate: pip install 'bbt-prompt\[large\]'"):
        LocalBackend(str(tiny_folder("gpt2")), device_map="auto")
