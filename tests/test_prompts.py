import numpy as np
import pytest
from safetensors.numpy import save_file

from bbt.errors import PromptError
from bbt.prompts.soft import SoftPrompt

RNG = np.random.default_rng(0)


def soft_prompt(n_tokens=3, anchor=False):
    shape = (n_tokens, 4)
    return SoftPrompt(
        RNG.normal(size=shape).astype(np.float32),
        "roberta-large",
        "abc123",
        "{prompt} {text} {mask}",
        ("bad", "great"),
        ("negative", "positive"),
        RNG.normal(size=shape).astype(np.float32) if anchor else None,
        {"task": "sst2", "dev": {"metric": 0.9, "loss": 0.1}, "commit": None, "title": "naïve — œuvre"},
    )


@pytest.mark.parametrize("n_tokens", [0, 3])
@pytest.mark.parametrize("anchor", [False, True])
def test_a_prompt_is_loaded_as_it_was_saved(tmp_path, n_tokens, anchor):
    prompt, path = soft_prompt(n_tokens, anchor), tmp_path / "prompt.safetensors"
    prompt.save(path)
    for loaded in (SoftPrompt.load(path), SoftPrompt.load(tmp_path)):  # the file, or its run folder
        np.testing.assert_array_equal(loaded.embeddings, prompt.embeddings)
        assert loaded.embeddings.dtype == np.float32
        assert (loaded.anchor is None) == (not anchor)
        if anchor:
            np.testing.assert_array_equal(loaded.anchor, prompt.anchor)
        for fact in ("model", "fingerprint", "template", "label_words", "label_names", "provenance"):
            assert getattr(loaded, fact) == getattr(prompt, fact)
        assert loaded.batch.shape == (1, n_tokens, 4)
    assert list(tmp_path.iterdir()) == [path]


def test_another_models_weights_are_refused_by_name():
    prompt = soft_prompt()
    prompt.check_model("any name", "abc123")
    with pytest.raises(PromptError, match=r"tuned for roberta-large \(weights abc123\), not for gpt2 \(weights def\)"):
        prompt.check_model("gpt2", "def")


def test_a_missing_prompt_is_named(tmp_path):
    for path in (tmp_path / "gone.safetensors", tmp_path):
        with pytest.raises(PromptError, match=r"no prompt at .*safetensors\. Give a run folder"):
            SoftPrompt.load(path)


@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_a_damaged_file_is_named(tmp_path, cut):
    path = tmp_path / "prompt.safetensors"
    soft_prompt().save(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(PromptError, match=r"prompt\.safetensors is not a readable safetensors file"):
        SoftPrompt.load(path)


@pytest.mark.parametrize("facts", [{}, {"prompt": "{"}, {"prompt": "{}"}, {"prompt": "[]"}])
def test_metadata_that_do_not_describe_a_prompt_are_damage(tmp_path, facts):
    path = tmp_path / "prompt.safetensors"
    save_file({"embeddings": np.zeros((1, 2), np.float32)}, path, metadata={"format": "bbt-soft-prompt/1", **facts})
    with pytest.raises(PromptError, match=r"prompt\.safetensors is damaged"):
        SoftPrompt.load(path)


@pytest.mark.parametrize(
    ("arrays", "metadata"),
    [
        ({"weight": np.zeros(3, np.float32)}, None),
        ({"embeddings": np.zeros((1, 2), np.float32)}, {"format": "pt"}),
        ({"embeddings": np.zeros((1, 2), np.float32)}, {"format": "bbt-soft-prompt/2", "prompt": "{}"}),
        ({"weight": np.zeros(3, np.float32)}, {"format": "bbt-soft-prompt/1", "prompt": "{}"}),
    ],
)
def test_a_safetensors_file_that_is_no_prompt_is_refused(tmp_path, arrays, metadata):
    path = tmp_path / "adapter.safetensors"
    save_file(arrays, path, metadata=metadata)
    with pytest.raises(PromptError, match=r"adapter\.safetensors is not a soft prompt of format bbt-soft-prompt/1"):
        SoftPrompt.load(path)
