"""`random:` models: the published shapes, the same weights every time."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from backends.local import LocalBackend
from backends.local.shapes import SHAPES, random_config
from bbt.errors import BackendError

# Parameters of the published checkpoints with their language modelling heads, tied weights counted once.
PUBLISHED = {
    "bert-base": 109_514_298,
    "bert-large": 335_174_458,
    "roberta-base": 124_697_433,
    "roberta-large": 355_412_057,
    "gpt2": 124_439_808,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "smollm2-135m": 134_515_008,
    "smollm2-1.7b": 1_711_376_384,
    "llama-3-8b": 8_030_261_248,
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_the_size_of_the_published_model(name):
    kinds = {"bert": AutoModelForMaskedLM, "roberta": AutoModelForMaskedLM, "t5": AutoModelForSeq2SeqLM}
    auto = kinds.get(SHAPES[name][0], AutoModelForCausalLM)
    with torch.device("meta"):
        model = auto.from_config(random_config(name))
    assert sum(weight.numel() for weight in model.parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_folders_configuration_with_random_weights(name, tiny_folder, tiny_backend):
    first, again, half = (
        LocalBackend(f"random:{tiny_folder(name)}", device="cpu", precision=p) for p in ("fp32", "fp32", "bf16")
    )
    own = tiny_backend(name).info
    assert first.info.fingerprint == again.info.fingerprint == half.info.fingerprint != own.fingerprint
    assert (first.info.kind, first.info.vocab_size, first.info.n_layers) == (own.kind, own.vocab_size, own.n_layers)
    assert half.info.precision == "bfloat16"


def test_a_configuration_without_a_tokenizer_takes_a_bundled_one(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta", "vocab_size": 12000, **sizes}))
    backend = LocalBackend(f"random:{tmp_path}", device="cpu", precision="fp32")
    assert backend.info.vocab_size == 12000
    assert backend.embed_text("a film").shape == (1, 2, 32)


def test_drawing_weights_leaves_the_global_generator_alone(tiny_folder):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    LocalBackend(f"random:{tiny_folder('bert')}", device="cpu", precision="fp32")
    assert torch.equal(torch.rand(3), expected)


def test_an_unknown_shape_suggests_the_nearest():
    with pytest.raises(BackendError, match=r"unknown shape 'roberta-lage'\. Did you mean 'roberta-large'"):
        LocalBackend("random:roberta-lage")
