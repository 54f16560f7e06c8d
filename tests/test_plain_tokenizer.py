"""The tokenizer that is read without `transformers` is that of `transformers`, wherever it is read at all."""

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import ARCHITECTURES, CAUSAL
from transformers import AutoConfig, AutoTokenizer

from backends.local.encoding import RowTokenizer, ordinary_ids, special_ids
from backends.models import bundled_models
from backends.openai.tokenizer import plain_tokenizer
from backends.openai.words import PLAIN, _parameter_name
from bbt.errors import BackendError, LabelWordError
from bbt.tasks.template import Template

MODELS = (*ARCHITECTURES, *bundled_models())
SPECIAL = ("<|endoftext|>", "<s>", "</s>", "<unk>", "<mask>", "[MASK]", "[SEP]", "[UNK]", "[PAD]")
TEMPLATES = (
    "{prompt} . {text} ? {text_pair} It was {mask}",
    "{prompt}{text}\n\n{text_pair}\n{prompt} :\t{mask}",
    "Q: <s> {text} </s>[SEP] {prompt} <|endoftext|>A{text_pair}é: {mask}",
    "{start}Text: {text} {text_pair}{mask}",
)
texts = st.lists(
    st.one_of(
        st.sampled_from([*SPECIAL, " ", "\n", "  ", "great", " bad", "好", "e\u0301", "🙂", "\u00a0"]),
        st.text(max_size=6),
    ),
    max_size=8,
).map("".join)

every_model = pytest.mark.parametrize("name", MODELS)
quickly = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)


@pytest.fixture(scope="module")
def pair(tiny_folder):
    """name -> its tokenizer, read plainly and by `transformers`, each read once."""
    kept = {}

    def both(name):
        if name not in kept:
            folder = bundled_models().get(name) or tiny_folder(name)
            kept[name] = plain_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
        return kept[name]

    return both


@pytest.fixture(scope="module")
def row_pair(pair):
    """name -> a `RowTokenizer` over either of them."""
    kept = {}

    def both(name):
        if name not in kept:
            causal = name in CAUSAL or name.startswith("gpt2")
            kept[name] = tuple(RowTokenizer(tokenizer, 60, causal) for tokenizer in pair(name))
        return kept[name]

    return both


@every_model
def test_the_facts_are_the_same(name, pair):
    plain, expected = pair(name)
    assert plain is not None
    assert plain.is_fast
    for fact in ("all_special_ids", "mask_token_id", "unk_token_id"):
        assert getattr(plain, fact) == getattr(expected, fact)
    assert len(plain) == len(expected)
    assert plain.get_vocab() == expected.get_vocab()
    assert repr(plain.added_tokens_decoder) == repr(expected.added_tokens_decoder)
    assert special_ids(plain) == special_ids(expected)
    assert ordinary_ids(plain, 10**6) == ordinary_ids(expected, 10**6)
    assert plain.convert_tokens_to_ids("none such") == expected.convert_tokens_to_ids("none such")


@every_model
@given(text=texts)
@quickly
def test_ids_offsets_tokens_and_texts_are_the_same(name, pair, text):
    plain, expected = pair(name)
    for options in (
        {},
        {"add_special_tokens": False, "return_offsets_mapping": True},
        {"add_special_tokens": False, "split_special_tokens": True, "return_offsets_mapping": True},
    ):
        ours, theirs = (tokenizer(text, verbose=False, **options) for tokenizer in (plain, expected))
        assert ours == {key: theirs[key] for key in ours}
        assert ("offset_mapping" in ours) == ("return_offsets_mapping" in options)
    ids = plain(text)["input_ids"]
    assert plain.decode(ids) == expected.decode(ids)
    tokens = plain.convert_ids_to_tokens(ids)
    assert tokens == expected.convert_ids_to_tokens(ids)
    assert plain.convert_tokens_to_ids(tokens) == expected.convert_tokens_to_ids(tokens)


@every_model
@given(text=texts, text_pair=texts)
@quickly
def test_rows_are_the_same(name, row_pair, text, text_pair):
    ours, theirs = row_pair(name)
    assert ours.special_ids == theirs.special_ids
    assert ours.text_ids(text) == theirs.text_ids(text)
    for template in TEMPLATES:
        row, found = Template(template).render(text, text_pair, 3), []
        for tokenizer in (ours, theirs):
            try:
                found.append(tokenizer.row(row))
            except BackendError as error:  # a causal template that is longer than the model
                found.append(str(error))
        assert found[0] == found[1]


@every_model
def test_label_words_are_the_same_and_are_refused_in_the_same_words(name, row_pair):
    row = Template(TEMPLATES[0]).render("a film", "", 3)
    for words in (["bad", "great"], ["badWorld", "great"], ["bad", "bad"], ["[MASK]", "好"]):
        found = []
        for tokenizer in row_pair(name):
            try:
                found.append(tokenizer.label_ids(words, row))
            except LabelWordError as error:
                found.append(str(error))
        assert found[0] == found[1]


def test_a_copy_that_learns_tokens_leaves_the_original_alone(pair):
    plain, _ = pair("gpt2-mini")
    before = len(plain)
    RowTokenizer(plain, 60, causal=True)
    assert len(plain) == before


def changed(folder, **entries):
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


@pytest.mark.parametrize(
    "entries",
    [
        {"tokenizer_class": "GPT2Tokenizer"},
        {"auto_map": {"AutoTokenizer": ["a.B", None]}},
        {"split_special_tokens": True},
        {"image_token": "<image>"},
        {"pad_token": "[PAD]"},
        {"extra_special_tokens": ["<more>"]},
        {"extra_special_tokens": {"image_token": "great"}},
        {"added_tokens_decoder": {"0": {"content": "<|endoftext|>", "special": False}}},
    ],
)
def test_a_tokenizer_of_which_more_is_told_elsewhere_is_left_to_transformers(entries, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder("gpt2"), tmp_path / "other")
    assert plain_tokenizer(folder) is not None
    changed(folder, **entries)
    assert plain_tokenizer(folder) is None


@pytest.mark.parametrize("file", ["added_tokens.json", "special_tokens_map.json"])
def test_so_is_one_with_files_of_older_versions(file, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder("gpt2"), tmp_path / "older")
    (folder / file).write_text("{}")
    assert plain_tokenizer(folder) is None


def test_tokens_told_twice_and_alike_are_plain(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder("gpt2"), tmp_path / "twice")
    changed(folder, added_tokens_decoder={"0": {"content": "<|endoftext|>", "special": True, "normalized": False}})
    (folder / "special_tokens_map.json").write_text("{}")
    plain, expected = plain_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert repr(plain.added_tokens_decoder) == repr(expected.added_tokens_decoder)
    assert plain.all_special_ids == expected.all_special_ids
    assert plain("a <|endoftext|> b")["input_ids"] == expected("a <|endoftext|> b")["input_ids"]


@pytest.mark.parametrize("architecture", PLAIN)
def test_the_word_embeddings_names_are_those_of_the_architectures(architecture):
    plain = PLAIN[architecture]
    config = AutoConfig.for_model(plain.model_type)
    config.num_hidden_layers = 1
    assert _parameter_name(config) == plain.words
    assert {plain.layers, plain.length} <= set(config.to_dict())
