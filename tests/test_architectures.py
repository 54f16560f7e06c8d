"""What leaves an unusual model is what a plain forward pass of transformers says, or it is refused in one line."""

import numpy as np
import pytest
import torch
from reference import Reference, normalised
from test_local_backend import BEFORE, TEXTS, is_packed
from tiny_models import DEVICE
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from backends.local import LocalBackend, check
from bbt.errors import BackendError

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
SHORT = {**SIZES, "max_position_embeddings": 64}
BART = {
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [4.0, 3.0, 2.0, 1.5],
    "original_max_position_embeddings": 24,
    "rope_theta": 10000.0,
}
WINDOW = {"num_key_value_heads": 2, "max_position_embeddings": 64, "sliding_window": 12}
SOME_LAYERS = ["full_attention", "sliding_attention", "sliding_attention"]
XLM = {"emb_dim": 32, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 64, "n_langs": 1}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 24, "rope_theta": 10000.0}
MODELS = {
    # position 0 was read: the decoder is called past `base_model`
    "opt": ("causal", {**SIZES, "ffn_dim": 64, "max_position_embeddings": 64, "word_embed_proj_dim": 32}),
    "opt, narrow words": ("causal", {**SIZES, "ffn_dim": 64, "max_position_embeddings": 64, "word_embed_proj_dim": 16}),
    "bart": ("causal", BART),
    "mbart": ("causal", BART),
    # something is done to the logits after the decoder
    "gemma2": ("causal", {**SHORT, "num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 2.0}),
    "cohere": ("causal", {**SHORT, "num_key_value_heads": 2, "logit_scale": 0.25}),
    "granite": ("causal", {**SHORT, "num_key_value_heads": 2, "logits_scaling": 3.0, "residual_multiplier": 0.5}),
    # frequencies depend on the longest row of a batch
    "phi3": ("causal", {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 64, "rope_parameters": LONGROPE}),
    "llama": ("causal", {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 64, "rope_parameters": DYNAMIC}),
    # windows shorter than the rows
    "mistral": ("causal", {**SIZES, **WINDOW}),
    "qwen3": ("causal", {**SIZES, **WINDOW, "head_dim": 8, "use_sliding_window": True, "layer_types": SOME_LAYERS}),
    "gemma3_text": ("causal", {**SIZES, **WINDOW, "head_dim": 8, "layer_types": SOME_LAYERS}),
    "phimoe": ("causal", {**SIZES, **WINDOW, "num_local_experts": 2}),  # told of by its mask alone
    "gpt_neo": (
        "causal",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 12,
            "max_position_embeddings": 64,
        },
    ),
    "modernbert": ("masked", {**SIZES, "max_position_embeddings": 64, "local_attention": 12}),
    "longformer": ("masked", {**SIZES, "max_position_embeddings": 66, "attention_window": [8, 8, 8]}),
    # positions that are told by the attention, and heads that share keys
    "falcon": ("causal", {**SHORT, "alibi": True}),
    "mpt": ("causal", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "gpt_neox": ("causal", {**SIZES, "max_position_embeddings": 64}),
    "gptj": ("causal", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 64}),
    "gpt_bigcode": ("causal", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "multi_query": True}),
    "stablelm": ("causal", {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 64}),
    "roformer": ("masked", {**SIZES, "embedding_size": 16, "max_position_embeddings": 64}),
    # masked LMs that are named ...WithLMHeadModel
    "xlm": ("masked", XLM),
    "flaubert": ("masked", XLM),
    # heads without a linear decoder of their own, and words narrower than the hidden states
    "mobilebert": (
        "masked",
        {
            **SIZES,
            "embedding_size": 16,
            "max_position_embeddings": 64,
            "true_hidden_size": 16,
            "intra_bottleneck_size": 16,
        },
    ),
    "deberta-v2": ("masked", {**SIZES, "max_position_embeddings": 64, "legacy": False, "type_vocab_size": 0}),
    "deberta": (
        "masked",
        {**SIZES, "max_position_embeddings": 64, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    ),
    "electra": ("masked", {**SIZES, "embedding_size": 16, "max_position_embeddings": 64}),
    "albert": ("masked", {**SIZES, "embedding_size": 16, "max_position_embeddings": 64}),
    "xlm-roberta": ("masked", {**SIZES, "max_position_embeddings": 66}),
}
PACKED = {"opt", "opt, narrow words", "cohere", "granite", "phi3", "llama", "gpt_neox", "gpt_bigcode"}
PACKED |= {"electra", "xlm-roberta"}
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture
def make(tiny_folder, tmp_path):
    """name -> a folder with a small random model of that kind, whose sizes are those of `MODELS` or the ones given."""

    def save(name, kind=None, sizes=None):
        kind, sizes = (kind, sizes) if sizes else MODELS[name]
        tokenizer = AutoTokenizer.from_pretrained(tiny_folder("bert" if kind == "masked" else "gpt2"))
        tokenizer.save_pretrained(tmp_path)
        ends = {"pad_token_id": 0, **({} if kind == "masked" else {"bos_token_id": 0, "eos_token_id": 0})}
        config = AutoConfig.for_model(name.partition(",")[0], vocab_size=len(tokenizer), **ends, **sizes)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = (AutoModelForMaskedLM if kind == "masked" else AutoModelForCausalLM).from_config(config)
            for weight in model.parameters():
                weight.data.add_(0.2 * torch.randn(weight.shape))
        model.save_pretrained(tmp_path)
        return tmp_path, kind

    return save


@every_model
def test_scores_are_those_of_a_plain_forward(name, make, random_prompts):
    folder, kind = make(name)
    backend = LocalBackend(str(folder), precision="fp32", device=DEVICE)
    prompts = random_prompts(2, 5, backend.info.hidden_size, scale=0.5)
    expected = BEFORE.expected(Reference(folder, kind), prompts)
    np.testing.assert_allclose(normalised(BEFORE.scores(backend, prompts)), expected, atol=1e-4)
    assert expected.std(0).max() > 0.01, "prompts that score alike would prove nothing"
    assert expected.std(1).max() > 0.01, "rows that score alike would prove nothing"
    assert is_packed(backend) == (name in PACKED)


@pytest.mark.parametrize("name", [name for name, (_, sizes) in MODELS.items() if "sliding_window" in sizes])
def test_a_window_is_kept_to_though_no_row_of_the_check_is_as_long(name, make, random_prompts, monkeypatch):
    """As of a model whose window of 4,096 tokens is longer than rows that are worth the time."""
    monkeypatch.setattr(check, "LONG", (8,))
    monkeypatch.setattr(check, "LONGEST", 1)
    test_scores_are_those_of_a_plain_forward(name, make, random_prompts)


XLNET = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}
REFUSED = {
    "xlnet": ("causal", XLNET, r"XLNetLMHeadModel is no causal LM here: what it says .* depends on later ones"),
    "bert": ("causal", {**SIZES, "max_position_embeddings": 64}, "BertLMHeadModel is no causal LM here"),
    "ibert": ("masked", {**SIZES, "max_position_embeddings": 66}, "IBertForMaskedLM is a kind of .* given embeddings"),
    "xmod": ("masked", {**SIZES, "max_position_embeddings": 66}, "XmodForMaskedLM is a kind of .*language unknown"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_scored_with_is_refused_in_one_line(name, make):
    kind, sizes, said = REFUSED[name]
    with pytest.raises(BackendError, match=said) as refused:
        LocalBackend(str(make(name, kind, sizes)[0]), kind=kind, precision="fp32", device=DEVICE)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["phi3", "llama"])
def test_a_row_does_not_depend_on_the_longest_beside_it(name, make, random_prompts):
    folder, _ = make(name)
    backend, prompts = LocalBackend(str(folder), precision="fp32", device=DEVICE), random_prompts(2, 5, scale=0.5)
    together = BEFORE.scores(backend, prompts)
    alone = [BEFORE.scores(backend, prompts, [pair])[:, 0] for pair in TEXTS]
    lengths = backend.encode(BEFORE.rows(), ("bad", "great")).lengths
    assert min(lengths) < 24 < max(lengths)
    np.testing.assert_allclose(together, np.stack(alone, axis=1), atol=1e-5)


@pytest.mark.parametrize("name", ["electra", "bart"])
def test_deep_prompts_where_they_have_a_place(name, make, random_prompts):
    folder, _ = make(name)
    backend = LocalBackend(str(folder), precision="fp32", device=DEVICE)
    rows = backend.encode(BEFORE.rows(), ("bad", "great"))
    assert backend.info.n_layers == 3
    deep = random_prompts(6, 5, backend.info.hidden_size).reshape(2, 3, 5, -1)
    if name == "electra":
        with pytest.raises(BackendError, match="word embeddings of 16 numbers and hidden states of 32: deep prompts"):
            backend.deep_label_scores(deep, rows)
        return
    deep[:, 1:] = 0
    np.testing.assert_array_equal(backend.deep_label_scores(deep, rows), backend.label_scores(deep[:, 0], rows))


def test_an_anchor_is_projected_as_the_words_are(make, random_prompts):
    folder, kind = make("electra")
    backend, reference = LocalBackend(str(folder), precision="fp32", device=DEVICE), Reference(folder, kind)
    anchor, offsets = random_prompts(1, 5, 16), random_prompts(2, 5, 16, scale=0.5, seed=1)
    expected = BEFORE.expected(reference, np.repeat(anchor, 2, axis=0), after_layernorm=offsets)
    found = normalised(BEFORE.scores(backend, anchor + offsets, anchor=anchor))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_an_encoder_decoder_is_no_masked_lm(tiny_folder):
    with pytest.raises(BackendError, match="an encoder-decoder model and no masked LM") as refused:
        LocalBackend(str(tiny_folder("bart")), kind="masked", precision="fp32", device=DEVICE)
    assert "\n" not in str(refused.value)


def test_what_agrees_in_no_way_is_refused_with_its_name(tiny_backend, monkeypatch):
    monkeypatch.setattr("backends.local.check.TOLERANCES", {torch.float32: -1.0})
    with pytest.raises(BackendError, match=r"^BertForMaskedLM is a kind of model that bbt cannot score with"):
        tiny_backend("bert")


def test_a_layer_that_cannot_be_cut_is_computed_whole(tiny_backend, reference, random_prompts, monkeypatch):
    from backends.local import packing

    def refuse(*_):
        raise NotImplementedError("not understood")

    monkeypatch.setattr(packing, "_keys_only", refuse)
    backend, prompts = tiny_backend("gpt2"), random_prompts(2, 5)
    assert is_packed(backend)
    expected = BEFORE.expected(reference("gpt2"), prompts)
    np.testing.assert_allclose(normalised(BEFORE.scores(backend, prompts)), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("bert", "encoder.layer.1.layer.intermediate"),
        ("gpt2", "h.1.layer.mlp"),
        ("llama", "layers.1.layer.mlp"),
    ],
)
def test_only_what_is_read_goes_through_the_top(name, place, tiny_backend, random_prompts):
    """The widest part of the last layer is given one token a row."""
    backend, widths = tiny_backend(name), []
    wide = backend.trunk.get_submodule(place)
    wide.register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[1]))
    rows = backend.encode(BEFORE.rows(), ("bad", "great"))
    backend.label_scores(random_prompts(3, 5), rows)
    assert widths == [3 * len(TEXTS)]
