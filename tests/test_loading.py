"""Models come from a name or a folder; what cannot be loaded says why, and what could be."""

import json
import shutil
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from tiny_models import ARCHITECTURES, CAUSAL, ENCODER_DECODER, save_tiny
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    ElectraConfig,
    ElectraForPreTraining,
    LlamaConfig,
    LlamaModel,
    ViTConfig,
)

from backends import load_backend
from backends.local import LocalBackend
from backends.local.hub import where
from backends.local.loading import resolve_device, resolve_precision
from backends.models import bundled_models
from backends.openai.words import read_words
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
    with pytest.raises(
        BackendError, match=r"cannot load model 'no-such-model'.*Give a folder, a GGUF file, a name on the hub"
    ) as e:
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


TINY = {"vocab_size": 102, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
HEADLESS = {
    "encoder": BertModel(BertConfig(**TINY)),
    "classifier": BertForSequenceClassification(BertConfig(**TINY)),
    "discriminator": ElectraForPreTraining(ElectraConfig(**TINY, embedding_size=32)),
    "decoder": LlamaModel(LlamaConfig(**TINY, tie_word_embeddings=False)),
}


@pytest.fixture
def beside_a_tokenizer(tiny_folder, tmp_path):
    """A model as a folder with a tokenizer that fits it."""

    def save(model, name="bert"):
        model.save_pretrained(tmp_path / "model")
        shutil.copytree(tiny_folder(name), tmp_path / "model", ignore=IGNORED, dirs_exist_ok=True)
        return str(tmp_path / "model")

    return save


IGNORED = shutil.ignore_patterns("*.safetensors", "config.json", "generation_config.json")


@pytest.mark.parametrize("what", HEADLESS)
def test_a_checkpoint_without_a_head_is_refused_by_the_names_of_its_missing_weights(what, beside_a_tokenizer):
    missing = {"encoder": "cls.predictions", "classifier": "cls.predictions", "decoder": "lm_head.weight"}
    folder = beside_a_tokenizer(HEADLESS[what])
    with pytest.raises(BackendError, match=rf"lack weights of \w+.*{missing.get(what, 'generator_')}"):
        LocalBackend(folder, device="cpu")


def test_weights_of_which_nothing_is_read_are_not_worth_a_line(beside_a_tokenizer, capfd, caplog):
    folder = beside_a_tokenizer(BertForPreTraining(BertConfig(**TINY)))
    assert LocalBackend(folder, device="cpu", precision="fp32").info.architecture == "BertForMaskedLM"
    assert (*capfd.readouterr(), caplog.text) == ("", "", "")


def test_weights_of_another_shape_are_refused(beside_a_tokenizer):
    folder = beside_a_tokenizer(BertForMaskedLM(BertConfig(**TINY)))
    config = json.loads((Path(folder) / "config.json").read_text())
    (Path(folder) / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(BackendError, match="cannot load model"):
        LocalBackend(folder, device="cpu")


def test_a_model_of_no_kind_is_named(tmp_path):
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(BackendError, match=r"it is of type vit .*none of a masked LM") as error:
        LocalBackend(str(tmp_path), device="cpu")
    with pytest.raises(BackendError, match=r"it is of type vit .*none of a masked LM"):
        read_words(str(tmp_path))
    assert "\n" not in str(error.value)


def test_an_encoder_decoder_is_one_by_its_config_and_nothing_else_is(tiny_folder, tiny_backend):
    for name in ENCODER_DECODER:
        assert tiny_backend(name).info.kind == "encoder-decoder"
        with pytest.raises(BackendError, match="is an encoder-decoder; this kind of endpoint serves causal LMs only"):
            read_words(str(tiny_folder(name)))
    with pytest.raises(BackendError, match=r"it is of type gpt2 .*which is no encoder-decoder LM"):
        tiny_backend("gpt2", kind="encoder-decoder")


def test_a_tokenizer_with_words_beyond_the_embeddings_is_refused(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder("gpt2"), tmp_path / "larger")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["extraordinary"])
    tokenizer.save_pretrained(folder)
    n_words = len(tokenizer) - 1
    for load in (lambda: LocalBackend(str(folder), device="cpu"), lambda: read_words(str(folder))):
        with pytest.raises(BackendError, match=rf"1 of its tokens, 'extraordinary' .* beyond the {n_words} word embed"):
            load()


def test_a_special_token_beyond_the_embeddings_that_no_row_holds_is_left_alone(tiny_folder, tmp_path, tiny_backend):
    """As chat models have their padding."""
    folder = shutil.copytree(tiny_folder("gpt2"), tmp_path / "padded")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    backend, plain = LocalBackend(str(folder), device="cpu", precision="fp32"), tiny_backend("gpt2")
    assert backend.ordinary_ids() == read_words(str(folder)).ordinary_ids() == plain.ordinary_ids()
    assert max(backend.prompt_ids("a [PAD] film")) < backend.info.vocab_size


def test_a_silent_hub_is_asked_once(monkeypatch):
    """Its own client would ask six times, waiting longer each time."""
    calls = []
    with socket.create_server(("127.0.0.1", 0)) as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")

        def hang_up():
            while True:
                try:
                    connection, _ = hub.accept()
                except OSError:
                    return
                calls.append(connection)
                connection.close()

        answering = threading.Thread(target=hang_up, daemon=True)
        answering.start()
        with pytest.raises(BackendError, match=r"no copy of such a model .*hub \(http://127.* is out of reach"):
            LocalBackend("nobody/no-such-model", device="cpu")
        hub.shutdown(socket.SHUT_RDWR)
        answering.join()
    assert len(calls) == 1


def test_a_model_that_was_fetched_before_is_found_while_the_hub_is_silent(monkeypatch, tiny_folder, tmp_path):
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(tiny_folder("bert"), snapshot)
    (tmp_path / "models--org--tiny" / "refs").mkdir()
    (tmp_path / "models--org--tiny" / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert where("org/tiny", None) == {"revision": None, "local_files_only": True}


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


@pytest.mark.parametrize("stored", PRECISIONS)
def test_one_folder_has_one_fingerprint_in_any_precision(stored, tiny_folder, tmp_path):
    source = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"), dtype=getattr(torch, PRECISIONS[stored]))
    AutoTokenizer.from_pretrained(tiny_folder("llama")).save_pretrained(tmp_path)
    source.save_pretrained(tmp_path)
    loaded = [LocalBackend(str(tmp_path), device="cpu", precision=p).info for p in ("fp32", *PRECISIONS)]
    assert [info.precision for info in loaded] == ["float32", *PRECISIONS.values()]
    assert len({info.fingerprint for info in loaded}) == 1


@pytest.mark.parametrize(("name", "saved"), [("minilm-mlm", "fc78a837edee"), ("gpt2-mini", "3bb62f33f428")])
def test_the_fingerprint_of_a_bundled_models_weights_stays_what_saved_prompts_name(name, saved):
    assert LocalBackend(name, device="cpu", precision="fp32").info.fingerprint == saved


def test_random_weights_have_one_fingerprint_in_any_precision(tiny_folder):
    name = f"random:{tiny_folder('bert')}"
    assert len({LocalBackend(name, device="cpu", precision=p).info.fingerprint for p in PRECISIONS}) == 1


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
    tokenizer = reference(name).tokenizer
    special = [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]
    assert set(tokenizer.all_special_ids) <= set(special)
    assert tiny_backend(name).ordinary_ids() == [i for i in range(len(matrix)) if i not in special]


def test_a_backend_is_loaded_by_its_name(tiny_folder):
    backend = load_backend("local", model=str(tiny_folder("bert")), device="cpu", precision="bf16")
    assert isinstance(backend, LocalBackend)
    assert backend.info.precision == "bfloat16"


def test_a_backend_of_the_users_own_is_loaded_by_module_and_class():
    backend = load_backend(f"{__name__}:OwnBackend", model="mine", volume=11)
    assert (type(backend), backend.model, backend.volume) == (OwnBackend, "mine", 11)


def test_an_unknown_backend_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown backend 'lokal'\. Did you mean 'local'\?.*module:Name"):
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
