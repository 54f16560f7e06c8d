"""Models come from a name or a folder; what cannot be loaded says why, and what could be."""

import json
import shutil

import numpy as np
import pytest
import torch
from tiny_models import ARCHITECTURES, CAUSAL, save_tiny

from backends import load_backend
from backends.local import LocalBackend
from backends.local.loading import resolve_device, resolve_precision
from backends.models import bundled_models
from bbt.errors import BackendError, ConfigError

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class OwnBackend:
    """A user's own class, named `module:Class` in a config."""

    def __init__(self, model, volume=1):
        self.model, self.volume = model, volume


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_kind_and_class_come_from_the_config(name, tiny_backend):
    info = tiny_backend(name).info
    assert info.kind == ("causal" if name in CAUSAL else "masked")
    assert info.architecture.lower().startswith(name)


def test_a_config_without_architectures_goes_by_the_model_type(tiny_folder, tmp_path):
    for name, kind in (("bert", "masked"), ("gpt2", "causal")):
        folder = shutil.copytree(tiny_folder(name), tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        del config["architectures"]
        (folder / "config.json").write_text(json.dumps(config))
        assert LocalBackend(model=str(folder), device="cpu").info.kind == kind


def test_the_model_is_frozen_and_in_eval_mode(tiny_backend):
    model = tiny_backend("bert").model
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize(("precision", "dtype"), PRECISIONS.items())
def test_precision_is_what_was_asked_for(precision, dtype, tiny_backend):
    assert tiny_backend("bert", precision=precision).info.precision == dtype


def test_auto_gives_a_device_and_precision_that_work(tiny_backend, random_prompts):
    backend = tiny_backend("bert", precision="auto", device="auto")
    assert backend.info.precision in ("float32", "bfloat16")
    assert backend.info.device.split(":")[0] in ("cpu", "cuda", "mps")
    assert np.isfinite(backend.embed_text("bad")).all()


def test_an_unknown_precision_suggests_the_nearest():
    with pytest.raises(BackendError, match=r"unknown precision 'fp31'\. Did you mean 'fp32'\? Valid: auto, bf16"):
        resolve_precision("fp31", torch.device("cpu"))


def test_an_unknown_device_suggests_the_nearest():
    with pytest.raises(BackendError, match=r"unknown device 'cudda'\. Did you mean 'cuda'\? Valid: auto, cpu"):
        resolve_device("cudda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_an_absent_device_names_those_present():
    with pytest.raises(BackendError, match=r"'cuda:1' is not available to this PyTorch .*cpu"):
        resolve_device("cuda:1")


def test_an_unknown_model_says_what_a_model_may_be():
    with pytest.raises(BackendError, match=r"cannot load model 'no-such-model'.*Give a folder, a name on the hub") as e:
        LocalBackend(model="no-such-model", device="cpu")
    assert all(name in str(e.value) for name in bundled_models())
    assert "Did you mean" not in str(e.value)


def test_a_misspelt_bundled_model_suggests_the_nearest():
    with pytest.raises(BackendError, match=r"model 'minilm-mln'.* Did you mean 'minilm-mlm'\? Give a folder"):
        LocalBackend(model="minilm-mln", device="cpu")


def test_a_model_of_the_other_kind_is_refused(tiny_backend):
    with pytest.raises(BackendError, match="cannot load model"):
        tiny_backend("gpt2", kind="masked")


def test_an_unknown_kind_suggests_the_nearest(tiny_backend):
    with pytest.raises(BackendError, match=r"unknown kind 'maskd'\. Did you mean 'masked'"):
        tiny_backend("bert", kind="maskd")


def test_damaged_weights_are_refused(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder("bert"), tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(BackendError, match="cannot load model"):
        LocalBackend(model=str(folder), device="cpu")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_folder_without_a_tokenizer_is_refused(name, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder(name), tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(BackendError, match="tokenizer"):
        LocalBackend(model=str(folder), device="cpu")


def test_one_folder_has_one_fingerprint_in_any_precision(tiny_backend):
    assert len({tiny_backend("gpt2", precision=p).info.fingerprint for p in ("fp32", "fp32", "bf16")}) == 1


def test_other_weights_have_another_fingerprint(tiny_backend, tmp_path):
    other = LocalBackend(model=str(save_tiny("gpt2", tmp_path, seed=1)), device="cpu")
    assert other.info.fingerprint != tiny_backend("gpt2").info.fingerprint


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_embeddings_are_rows_of_the_models_matrix(name, tiny_backend, reference):
    backend, matrix = tiny_backend(name), reference(name).model.get_input_embeddings().weight.detach().numpy()
    ids = [reference(name).word_id(word) for word in (" bad", " great")]
    np.testing.assert_array_equal(backend.embed_ids(ids), matrix[None, ids])
    np.testing.assert_array_equal(backend.embed_text("bad great"), matrix[None, ids])
    assert backend.embed_text("bad").dtype == np.float32


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ordinary_ids_are_all_but_the_special_ones(name, tiny_backend, reference):
    matrix = reference(name).model.get_input_embeddings().weight
    special = reference(name).tokenizer.all_special_ids
    assert tiny_backend(name).ordinary_ids() == [i for i in range(len(matrix)) if i not in special]


def test_a_backend_is_loaded_by_its_name(tiny_folder):
    backend = load_backend("local", model=str(tiny_folder("bert")), device="cpu", precision="bf16")
    assert isinstance(backend, LocalBackend)
    assert backend.info.precision == "bfloat16"


def test_a_backend_of_the_users_own_is_loaded_by_module_and_class():
    backend = load_backend(f"{__name__}:OwnBackend", model="mine", volume=11)
    assert (type(backend), backend.model, backend.volume) == (OwnBackend, "mine", 11)


def test_an_unknown_backend_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown backend 'lokal'\. Did you mean 'local'\?.*module:Class"):
        load_backend("lokal")


@pytest.mark.parametrize("name", ["no_such_module:Backend", f"{__name__}:NoSuchBackend"])
def test_a_backend_that_cannot_be_imported_is_refused(name):
    with pytest.raises(ConfigError, match="cannot be imported"):
        load_backend(name)


def test_an_option_that_the_backend_does_not_take_is_refused():
    with pytest.raises(ConfigError, match=r"'local'.*'presicion'.*Its options: .*precision"):
        load_backend("local", model="never-loaded", presicion="fp32")


every_bundled_model = pytest.mark.parametrize("name", sorted(bundled_models()))


@every_bundled_model
def test_a_bundled_model_is_small(name):
    folder = bundled_models()[name]
    limit = {"minilm-mlm": 32_000_000, "gpt2-mini": 16_000_000}[name]
    assert sum(file.stat().st_size for file in folder.iterdir()) <= limit


@every_bundled_model
def test_a_bundled_model_opens_in_plain_transformers(name):
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    folder, auto = bundled_models()[name], AutoModelForMaskedLM if "mlm" in name else AutoModelForCausalLM
    model, report = auto.from_pretrained(folder, output_loading_info=True)
    assert not [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    assert len(AutoTokenizer.from_pretrained(folder)) <= model.config.vocab_size
