import numpy as np
import pytest
from toy import TASK

from bbt.errors import ConfigError, PromptError
from bbt.prompts.soft import SoftPrompt
from bbt.settings import PromptConfig
from bbt.spaces.initial import initial_prompts
from bbt.tasks import Example, GenerationTask, Template
from bbt.testing import ToyBackend
from bbt.testing.toy import HIDDEN


def initial(seed=0, **settings):
    settings = {"n_prompt_tokens": 5, **settings}
    return initial_prompts(PromptConfig(**{"n_screened": 1, **settings}), ToyBackend(), TASK, [], seed)


def tokens(prompts):
    """The toy embeds token id i as i / 100: back to the ids."""
    return np.rint(prompts[..., 0] * 100).astype(int).tolist()


def test_vocabulary_draws_ordinary_tokens_by_the_seed():
    prompts = initial(n_prompt_tokens=1500)
    assert prompts.shape == (1, 1500, HIDDEN)
    assert set(tokens(prompts)[0]) == set(ToyBackend().ordinary_ids())
    np.testing.assert_array_equal(initial(n_prompt_tokens=1500), prompts)
    assert tokens(initial(seed=1)) != tokens(initial(seed=0))


def test_several_draws_are_made_for_screening_and_the_first_is_the_unscreened_one():
    prompts = initial(n_screened=4)
    assert prompts.shape == (4, 5, HIDDEN)
    assert len({tuple(row) for row in tokens(prompts)}) == 4
    assert tokens(prompts)[:1] == tokens(initial())


def test_random_vectors_are_as_wide_as_the_embeddings():
    prompts = initial(init="random", n_prompt_tokens=2000, n_screened=2)
    assert (prompts.shape, prompts.dtype) == ((2, 2000, HIDDEN), np.float32)
    assert prompts.std() == pytest.approx(ToyBackend().info.embedding_std, rel=0.02)
    assert abs(prompts.mean()) < 0.005
    np.testing.assert_array_equal(initial(init="random"), initial(init="random"))
    assert np.abs(initial(init="random", seed=1) - initial(init="random")).min() > 0


@pytest.mark.parametrize(
    ("text", "expected"), [("a bb ccc", [1, 2, 3, 1, 2]), ("a bb ccc dddd eeeee ffffff", [1, 2, 3, 4, 5])]
)
def test_a_text_is_repeated_or_cut_to_the_prompts_length(text, expected):
    assert tokens(initial(init="text", text=text)) == [expected]


def test_label_words_are_repeated():
    assert tokens(initial(init="label_words")) == [[2, 3, 2, 3, 2]]  # "no yes"


def test_answers_stand_as_the_template_has_them_one_a_line():
    task = GenerationTask("qa", Template("{prompt} {source} Q: {source_pair} and so: {target}"))
    train = [Example("a text", 0, "what", ("dddd",)), Example("a text", 0, "who", ("eeeee ffffff", "no"))]
    config = PromptConfig(init="answers", n_prompt_tokens=9)
    found = initial_prompts(config, ToyBackend(), task, train, 0)
    assert tokens(found) == tokens(ToyBackend().embed_text("and so: dddd and so: eeeee ffffff and so:"))
    assert task.answered(train[1]) == "and so: eeeee ffffff"
    assert Template("{source} a} b{target}").lead == " a} b"
    with pytest.raises(ConfigError, match=r"those of toy are labels; take label_words\."):
        initial(init="answers")


def test_demonstrations_stand_as_in_context_learning_has_them_and_the_last_one_is_whole():
    task = GenerationTask("qa", Template("{prompt} {source} Q: {source_pair} and so: {target}"))
    train = [Example("a text", 0, "what", ("dddd",)), Example("bb", 0, "who", ("eeeee ffffff", "no"))]
    shown = ("a text Q: what and so: dddd", "bb Q: who and so: eeeee ffffff")
    orders = {tuple(tokens(ToyBackend().embed_text(f"{a} {b}"))[0]) for a, b in (shown, shown[::-1])}
    n_tokens = len(min(orders))

    def begun(n, seed=0, task=task, train=train):
        config = PromptConfig(init="demonstrations", n_prompt_tokens=n)
        return tuple(tokens(initial_prompts(config, ToyBackend(), task, train, seed))[0])

    assert {begun(n_tokens, seed) for seed in range(8)} == orders
    whole = begun(n_tokens)
    assert begun(4) == whole[-4:]
    assert begun(n_tokens + 3) == whole[-3:] + whole
    labelled = [Example(f"{'w' * i}", i % 2) for i in range(1, 5)]
    for seed in range(4):
        answers = begun(8, seed, TASK, labelled)[1::2]
        assert {*answers[:2]} == {*answers[2:]} == {2, 3}  # "no" and "yes": the classes take turns


@pytest.mark.parametrize("init", ["answers", "demonstrations"])
def test_of_a_whole_data_set_only_what_is_needed_is_embedded(init):
    task = GenerationTask("qa", Template("{source} and so: {target}"))
    train = [Example("a text", 0, "", ("dddd" + "d" * (i % 20),)) for i in range(2000)]
    asked = []

    class Listening(ToyBackend):
        def embed_text(self, text):
            asked.append(text.count("\n"))
            return super().embed_text(text)

    config = PromptConfig(init=init, n_prompt_tokens=40)
    assert initial_prompts(config, Listening(), task, train, 0).shape == (1, 40, HIDDEN)
    assert asked == [1, 2, 4, 8, 16][: len(asked)]


@pytest.mark.parametrize("text", [None, ""])
def test_init_text_needs_a_text(text):
    with pytest.raises(ConfigError, match=r"init: text needs prompt\.text"):
        initial(init="text", text=text)


def test_a_text_without_tokens_is_refused():
    with pytest.raises(ConfigError, match="no tokens"):
        initial(init="text", text="  ")


def saved(folder, n_tokens=5, hidden=HIDDEN, fingerprint="toy-1.0", anchor=None):
    vectors = np.random.default_rng(0).normal(size=(n_tokens, hidden)).astype(np.float32)
    made_for = ("toy", fingerprint, "{prompt} {text} {mask}", ("no", "yes"))
    SoftPrompt(vectors, *made_for, anchor=anchor).save(folder / "prompt.safetensors")
    return vectors


def test_a_saved_prompt_is_taken_as_it_is(tmp_path):
    vectors = saved(tmp_path)
    for path in (tmp_path, tmp_path / "prompt.safetensors"):
        np.testing.assert_array_equal(initial(init=str(path)), vectors[None])


@pytest.mark.parametrize(("n_tokens", "hidden"), [(4, HIDDEN), (5, HIDDEN + 1)])
def test_a_saved_prompt_of_another_shape_is_refused(tmp_path, n_tokens, hidden):
    saved(tmp_path, n_tokens, hidden)
    with pytest.raises(PromptError, match=r"has shape .*, the run needs \(T, H\) = \(5, 4\)"):
        initial(init=str(tmp_path))


def test_a_prompt_of_another_model_or_placement_is_refused(tmp_path):
    saved(tmp_path, fingerprint="toy-2.0")
    with pytest.raises(PromptError, match="was tuned for toy"):
        initial(init=str(tmp_path))
    saved(tmp_path, anchor=np.zeros((5, HIDDEN), np.float32))
    with pytest.raises(PromptError, match=r"tuned with prompt\.placement: layernorm"):
        initial(init=str(tmp_path))


def test_an_init_that_is_neither_a_way_nor_a_path_is_refused():
    with pytest.raises(ConfigError, match=r"'vocabulry' is neither vocabulary, random, .* nor the path"):
        initial(init="vocabulry")
