"""Tokenised rows are what the tokenizer makes of the whole string, and only the example's text is ever cut."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import SLOT
from tiny_models import ARCHITECTURES, CAUSAL, MASKED, MAX_LENGTH

from backends.local.encoding import MASK, PROMPT, RowTokenizer, prompt_id
from bbt.backend import Segment
from bbt.errors import BackendError, DataError, LabelWordError
from bbt.tasks.template import Template

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
PAIR = "{prompt} . {text} ? {text_pair} It was {mask}"
WHITESPACE = "\n\t "
texts = st.text(st.sampled_from("abGst .,!?'-0é€🙂" + WHITESPACE), max_size=30)


@pytest.fixture
def row_tokenizer(tiny_folder):
    from transformers import AutoTokenizer

    def make(name, max_length=MAX_LENGTH):
        return RowTokenizer(AutoTokenizer.from_pretrained(tiny_folder(name)), max_length, name in CAUSAL)

    return make


def encode(tokenizer, template, text, text_pair="", n_tokens=3):
    return tokenizer.row(Template(template).render(text, text_pair, n_tokens))


def natural_ids(reference, natural, *texts, shares=()):
    """The reference's ids, with soft tokens written as the backend writes them."""
    slot, soft, ids = reference.tokenizer.convert_tokens_to_ids(SLOT), 0, []
    for token in reference.ids(natural, shares, *texts):
        ids.append(prompt_id(soft) if token == slot else token)
        soft += token == slot
    return tuple(ids)


@every_architecture
@given(text=texts, text_pair=texts)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_a_row_is_tokenised_as_the_whole_string(name, reference, row_tokenizer, text, text_pair):
    tokenizer = row_tokenizer(name, max_length=1000)
    for template, shares in ((PAIR, (3,)), ("{text} . {prompt} and {text_pair} {prompt} : {mask}", (2, 1))):
        row = encode(tokenizer, template, text, text_pair)
        assert row.ids == natural_ids(reference(name), template, text, text_pair, shares=shares)


NEWLINES = (
    ("{prompt}\n\nReview: {text}\nSentiment:\n{mask}", (3,)),
    ("User:\n{text}\n\n{text_pair}\n{prompt}\nAssistant: {mask}", (3,)),
    ("\n{text}\t{prompt}\n{text_pair} {prompt}\n\n{mask}", (2, 1)),
)


@every_architecture
@pytest.mark.parametrize(("template", "shares"), NEWLINES)
@given(text=texts, text_pair=texts)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=15)
def test_the_templates_newlines_are_kept(name, template, shares, reference, row_tokenizer, text, text_pair):
    row = encode(row_tokenizer(name, max_length=1000), template, text, text_pair)
    assert row.ids == natural_ids(reference(name), template, text, text_pair, shares=shares)


@pytest.mark.parametrize("name", CAUSAL)
def test_whitespace_after_the_mask_of_a_causal_template_is_none_of_it(name, row_tokenizer):
    plain, block = (encode(row_tokenizer(name), "{text}\n{mask}" + end, "a film", n_tokens=0) for end in ("", "\n"))
    assert block == plain


@every_architecture
def test_without_a_prompt_a_row_is_tokenised_as_the_whole_string(name, reference, row_tokenizer):
    row = encode(row_tokenizer(name), "{prompt} . {text} It was {mask}", "a slow film", n_tokens=0)
    assert row.ids == natural_ids(reference(name), "{text} It was {mask}", "a slow film")


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("template", ["{prompt} . {mask} News: {text}", "{text} . It was {mask} . {prompt}"])
def test_a_masked_row_is_read_at_its_mask(name, template, tiny_folder, reference, row_tokenizer):
    row = encode(row_tokenizer(name), template, "a slow film")
    assert row.ids[row.read] == reference(name).tokenizer.mask_token_id


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_in_the_text_is_not_the_one_that_is_read(name, reference, row_tokenizer):
    mask = reference(name).tokenizer.mask_token
    row = encode(row_tokenizer(name), "{text} . It was {mask}", f"a {mask} film", n_tokens=0)
    assert row.read == len(row.ids) - 2  # only [SEP] comes after it


@every_architecture
def test_special_tokens_in_a_text_are_text(name, reference, row_tokenizer):
    tokenizer = reference(name).tokenizer
    unknown = () if name == "gpt2" else (tokenizer.unk_token,)  # a piece that BERT's vocabulary lacks is one, too
    named = [token for token in tokenizer.special_tokens_map.values() if token not in unknown]
    special = set(tokenizer.convert_tokens_to_ids(named))
    plain = encode(row_tokenizer(name), PAIR, "a", "b").ids
    row = encode(row_tokenizer(name, 1000), PAIR, " ".join(named), named[-1]).ids
    assert sum(i in special for i in row) == sum(i in special for i in plain)
    assert len(row) > len(plain) + 2 * len(named)


@every_architecture
def test_special_tokens_in_label_words_and_prompts_are_text(name, reference, row_tokenizer):
    special = reference(name).tokenizer.all_special_tokens[0]
    ids = row_tokenizer(name).text_ids(special)
    assert len(ids) > 1
    with pytest.raises(LabelWordError, match="is not one token"):
        row_tokenizer(name).label_ids([special, "bad"], MASK_AFTER_SPACE)


def test_a_prompt_of_words_keeps_its_newlines(tiny_backend):
    backend = tiny_backend("gpt2")
    ids = backend.prompt_ids("\na film\n\n")
    assert backend.prompt_text(ids) == "\na film\n\n"


@every_architecture
def test_special_tokens_that_the_template_writes_are_special(name, reference, row_tokenizer):
    """As chat formats need it; the same string in the text beside it stays text."""
    end = reference(name).tokenizer.all_special_tokens[-1]
    template = f"{{prompt}}{end} user\n{{text}} {end}\n{{mask}}"
    row = encode(row_tokenizer(name, 1000), template, "a slow film")
    assert row.ids == natural_ids(reference(name), template, "a slow film", shares=(3,))
    special = reference(name).tokenizer.convert_tokens_to_ids(end)
    named = encode(row_tokenizer(name, 1000), template, f"a {end} film")
    assert named.ids.count(special) == row.ids.count(special) >= 2


def test_a_stand_ins_own_name_in_a_text_stands_for_nothing(row_tokenizer):
    row = encode(row_tokenizer("gpt2"), BEFORE, f"a {PROMPT} {MASK} film")
    assert sum(i < 0 for i in row.ids) == 3
    assert row.read == len(row.ids) - 1


@every_architecture
def test_half_a_character_is_found_and_shown(name, row_tokenizer):
    tokenizer = row_tokenizer(name)
    with pytest.raises(DataError, match=r"half of a character.*so good \\ud83d film"):
        encode(tokenizer, BEFORE, "so good \ud83d film")
    with pytest.raises(DataError, match="half of a character"):
        tokenizer.text_ids("\ud83d")
    with pytest.raises(DataError, match="half of a character"):
        tokenizer.label_ids(["bad", "\udc00"], MASK_AFTER_SPACE)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_row_is_read_at_its_last_token_whatever_its_length(name, row_tokenizer):
    for text in ("bad", "bad " * 20, "bad " * 200):
        row = encode(row_tokenizer(name), "{prompt} . {text} It was {mask}", text)
        assert row.read == len(row.ids) - 1


BEFORE = "{prompt} . {text} . It was {mask}"


def words(word, n):
    return " ".join([word] * n)


def n_fixed(tokenizer, template=BEFORE, n_texts=1, n_tokens=3):
    """Tokens of the template and the prompt without the texts."""
    return len(encode(tokenizer, template, "great", "great", n_tokens).ids) - n_texts


@every_architecture
def test_a_long_row_loses_the_end_of_its_text_and_nothing_else(name, row_tokenizer):
    tokenizer, text = row_tokenizer(name), words("great", 30) + " " + words("bad", 100)
    whole = encode(row_tokenizer(name, 1000), BEFORE, text)
    start, n_kept = whole.ids.index(tokenizer.text_ids("great")[0]), MAX_LENGTH - n_fixed(tokenizer)
    cut = encode(tokenizer, BEFORE, text)
    assert cut.ids == whole.ids[: start + n_kept] + whole.ids[start + 130 :]
    assert (cut.truncated, whole.truncated, len(cut.ids)) == (True, False, MAX_LENGTH)


@every_architecture
@pytest.mark.parametrize("surplus", [0, 1])
def test_only_what_is_too_long_is_cut(name, surplus, row_tokenizer):
    tokenizer = row_tokenizer(name)
    row = encode(tokenizer, BEFORE, words("great", MAX_LENGTH - n_fixed(tokenizer) + surplus))
    assert (len(row.ids), row.truncated) == (MAX_LENGTH, bool(surplus))


@every_architecture
def test_whitespace_before_a_text_does_not_move_the_cut(name, row_tokenizer):
    text, template = " " * 20 + words("great", 100), "{text} . It was {mask}"
    whole, cut = (encode(row_tokenizer(name, n), template, text, n_tokens=0).ids for n in (1000, MAX_LENGTH))
    end = len(encode(row_tokenizer(name), template, "", n_tokens=0).ids) - len(row_tokenizer(name)._left)
    assert cut == whole[: MAX_LENGTH - end] + whole[len(whole) - end :]


@every_architecture
def test_of_a_pair_the_longer_text_is_cut_first(name, row_tokenizer):
    tokenizer = row_tokenizer(name, 40)
    room = 40 - n_fixed(tokenizer, PAIR, n_texts=2)
    great, bad = (tokenizer.text_ids(word)[0] for word in ("great", "bad"))
    first = encode(tokenizer, PAIR, words("great", 10), words("bad", 50)).ids
    assert (first.count(great), first.count(bad)) == (10, room - 10)
    both = encode(tokenizer, PAIR, words("great", 50), words("bad", 50)).ids
    assert (both.count(great), both.count(bad)) == (room // 2, room - room // 2)


@pytest.mark.parametrize("name", MASKED)
def test_the_mask_is_found_again_when_text_before_it_was_cut(name, reference, row_tokenizer):
    mask = reference(name).tokenizer.mask_token_id
    for template in ("{text} . It was {mask} .", "{text} ? {mask} , {text_pair}"):
        row = encode(row_tokenizer(name), template, "great " * 100, "bad " * 100, n_tokens=0)
        assert (row.ids[row.read], row.truncated) == (mask, True)


@every_architecture
def test_a_template_that_does_not_fit_says_how_long_it_is(name, row_tokenizer):
    tokenizer = row_tokenizer(name)
    length = n_fixed(tokenizer, n_tokens=1) + 69
    with pytest.raises(BackendError, match=rf"takes {length} tokens, the model {MAX_LENGTH}\."):
        encode(tokenizer, BEFORE, words("great", 100), n_tokens=70)


@pytest.mark.parametrize(("name", "max_positions"), [("roberta", MAX_LENGTH + 2), ("bert", MAX_LENGTH)])
def test_positions_before_the_first_one_used_are_no_length(name, max_positions, tiny_backend):
    backend = tiny_backend(name)
    assert backend.model.config.max_position_embeddings == max_positions
    assert backend.info.max_length == MAX_LENGTH


def test_a_row_of_nothing_is_refused(row_tokenizer):
    with pytest.raises(BackendError, match="a row is empty"):
        encode(row_tokenizer("gpt2"), "{text} {mask}", "", n_tokens=0)


MASK_AFTER_SPACE = (Segment("literal", "It was "), Segment("mask"))


@pytest.mark.parametrize("name", ["roberta", "gpt2"])
def test_after_a_space_a_byte_level_label_word_begins_with_it(name, reference, row_tokenizer):
    words = ("bad", "great")
    expected = [reference(name).word_id(f" {word}") for word in words]
    assert row_tokenizer(name).label_ids(words, MASK_AFTER_SPACE) == expected


@pytest.mark.parametrize("name", ["roberta", "gpt2"])
@pytest.mark.parametrize("row", [(Segment("mask"),), (Segment("literal", "("), Segment("mask"))])
def test_elsewhere_it_does_not(name, row, reference, row_tokenizer):
    words = ("World", "Sports")
    expected = [reference(name).word_id(word) for word in words]
    assert row_tokenizer(name).label_ids(words, row) == expected


@pytest.mark.parametrize("name", ["roberta", "gpt2"])
def test_a_template_without_a_space_before_the_mask_takes_label_words_without_theirs(name, reference, row_tokenizer):
    """The released code's `tokenizer.encode(word, add_special_tokens=False)[0]`; nothing else in the row changes."""
    tokenizer, found = row_tokenizer(name), []
    for template in ("{prompt} . {text} . It was {mask}", "{prompt} . {text} . It was{mask}"):
        row = Template(template).render("a slow film", "", 3)
        found.append((tokenizer.row(row), tokenizer.label_ids(["World", "Sports"], row)))
    (spaced, with_space), (joined, without) = found
    assert joined == spaced
    encoder = reference(name).tokenizer
    assert with_space == [encoder.encode(f" {word}", add_special_tokens=False)[0] for word in ("World", "Sports")]
    assert without == [encoder.encode(word, add_special_tokens=False)[0] for word in ("World", "Sports")]


def test_a_label_word_that_is_one_token_only_the_other_way_says_so(row_tokenizer):
    with pytest.raises(
        LabelWordError, match=r"3: \['n', 'eg', 'ative'\].*without a space before it.*with it the word is"
    ):
        row_tokenizer("gpt2").label_ids(["negative"], (Segment("literal", "It was"), Segment("mask")))


@every_architecture
def test_spaces_around_a_label_word_are_no_part_of_it(name, row_tokenizer):
    tokenizer = row_tokenizer(name)
    assert tokenizer.label_ids([" bad ", "great"], MASK_AFTER_SPACE) == tokenizer.label_ids(
        ["bad", "great"], MASK_AFTER_SPACE
    )


def test_a_label_word_of_several_tokens_is_shown_in_pieces(row_tokenizer):
    with pytest.raises(LabelWordError, match=r"'badWorld' is not one token of this model but 2: \['Ġbad', 'World'\]"):
        row_tokenizer("gpt2").label_ids(["bad", "badWorld"], MASK_AFTER_SPACE)


def test_an_unknown_label_word_is_not_one_token(row_tokenizer):
    with pytest.raises(LabelWordError, match=r"but 1: \['\[UNK\]'\]"):
        row_tokenizer("bert").label_ids(["bad", "好"], MASK_AFTER_SPACE)


def test_two_label_words_that_are_one_token_are_refused(row_tokenizer):
    with pytest.raises(LabelWordError, match="'World' and 'world' are the same token"):
        row_tokenizer("bert").label_ids(["World", "bad", "world"], MASK_AFTER_SPACE)


def test_a_masked_model_needs_a_mask_token(tiny_folder):
    from transformers import AutoTokenizer

    with pytest.raises(BackendError, match="no mask token"):
        RowTokenizer(AutoTokenizer.from_pretrained(tiny_folder("gpt2")), MAX_LENGTH, causal=False)
