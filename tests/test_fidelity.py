"""`preset: released-code` does what the authors' code does, `preset: paper` what the paper prints; configs/README.md
lists the rest."""

from pathlib import Path

import pytest
from toy import TASK

from bbt.config import load_config, make_config, read_run_config
from bbt.errors import ConfigError
from bbt.methods import load_method
from bbt.settings import DataConfig, PromptConfig, TaskConfig
from bbt.spaces.initial import initial_prompts
from bbt.tasks.builtin import TASKS
from bbt.tasks.configured import make_split, make_task
from bbt.testing import ToyBackend

CONFIGS = Path(__file__).parents[1] / "configs"


def test_the_released_codes_preset_sets_what_the_code_does():
    config = make_config({"preset": "released-code", "task": {"name": "yelp"}, "data": {"k": 4}})
    assert (config.task.name, config.task.label_space, config.data.k, config.data.clean) == ("yelp", False, 4, True)
    prompt = load_method(config).prompt
    assert (prompt.init, prompt.first_id, prompt.n_prompt_tokens, prompt.placement) == ("ids", 1000, 50, "layernorm")


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_the_other_presets_leave_words_and_texts_as_they_are(preset):
    config = make_config({"preset": preset})
    assert (config.task.label_space, config.data.clean) == (True, False)
    assert load_method(config).prompt.init == "vocabulary"


def test_what_a_config_says_itself_comes_before_the_preset():
    assert make_config({"preset": "released-code", "task": {"label_space": True}}).task.label_space


def test_a_run_of_before_is_read_as_it_was_run(tmp_path):
    """Its preset set neither of the two then."""
    (tmp_path / "config.yaml").write_text("{format: bbt-config/2, preset: released-code, task: {name: sst2}}")
    config = read_run_config(tmp_path)
    assert (config.task.label_space, config.data.clean) == (True, False)


def encoded(backend, task):
    return backend.encode([task.template.render("a film", "so bad", 2)], task.label_words)


@pytest.mark.parametrize("name", ["sst2", "agnews", "dbpedia", "mrpc", "rte", "snli"])
def test_robertas_label_words_lose_their_space_and_the_row_stays(name, tiny_backend, reference):
    label_names = TASKS[name].label_names[:4]
    words = ("World", "Sports", "Business", "News")[: len(label_names)]  # the tiny tokenizer has them both ways
    names = {"label_names": label_names, "label_words": words}
    backend, tokenizer = tiny_backend("roberta"), reference("roberta").tokenizer
    spaced, joined = (make_task(TaskConfig(name=name, label_space=space, **names), "masked") for space in (True, False))
    with_space, without = encoded(backend, spaced), encoded(backend, joined)
    assert without.ids[0].tolist() == with_space.ids[0].tolist()
    of = {
        space: [tokenizer(space + word, add_special_tokens=False)["input_ids"][0] for word in words]
        for space in ("", " ")
    }
    assert without.label_ids.tolist() == of[""]
    assert with_space.label_ids.tolist() == of[" "]
    assert joined.template.manual().source == spaced.template.manual().source.replace(" {mask}", "{mask}")


def test_causal_models_keep_the_space():
    assert make_task(TaskConfig(name="sst2", label_space=False), "causal").template.source.endswith("is {mask}")


@pytest.mark.parametrize(
    ("task", "text", "cleaned"),
    [
        ("yelp", r" good\nfood ", " good food "),
        ("dbpedia", r" A\nplant. ", r"A\nplant."),
        ("agnews", r" A\nthing ", r" A\nthing "),
    ],
)
@pytest.mark.filterwarnings("ignore:the parts of the data overlap")
def test_texts_are_cleaned_as_the_code_cleans_them(task, text, cleaned, tmp_path):
    n_labels = len(TASKS[task].label_names)
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for label in range(n_labels)) * 2)
    for clean, expected in ((True, cleaned), (False, text)):
        data = DataConfig(source="files", train=str(path), test=str(path), k=1, clean=clean)
        split = make_split(data, make_task(TaskConfig(name=task), "masked"), 0)
        assert {example.text for part in (split.train, split.dev, split.test) for example in part} == {expected}


def test_p0_is_tokens_in_the_order_of_their_ids():
    backend, settings = ToyBackend(), PromptConfig(n_prompt_tokens=3, init="ids", first_id=4)
    prompts = initial_prompts(settings, backend, TASK, [], 0)
    assert (prompts == backend.embed_ids([4, 5, 6])).all()
    assert (initial_prompts(settings, backend, TASK, [], 1) == prompts).all()
    beyond = PromptConfig(n_prompt_tokens=3, init="ids", first_id=backend.info.vocab_size - 2)
    with pytest.raises(
        ConfigError, match=r"prompt\.init: ids asks for the tokens \d+ to \d+, .* lower prompt\.first_id"
    ):
        initial_prompts(beyond, backend, TASK, [], 0)


@pytest.mark.parametrize("folder", ["paper", "released-code"])
def test_robertas_dbpedia_has_a_word_a_label(folder):
    task = make_task(load_config(CONFIGS / folder / "roberta-large-dbpedia.yaml").task, "masked")
    full = TASKS["dbpedia"].masked.label_words
    assert all(word.startswith(piece) for word, piece in zip(full, task.label_words, strict=True))
