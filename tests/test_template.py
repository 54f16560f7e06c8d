import pytest

from bbt.backend import Segment
from bbt.errors import ConfigError
from bbt.tasks import Template

SST2 = "{prompt} . {text} . It was {mask} ."


def kinds(row):
    return [segment.kind for segment in row]


def test_every_slot_becomes_a_segment_in_its_place():
    assert Template(SST2).render("a film", "", 5) == (
        Segment("prompt", n_tokens=5),
        Segment("literal", " . "),
        Segment("text", "a film"),
        Segment("literal", " . It was "),
        Segment("mask"),
        Segment("literal", " ."),
    )


def test_a_pair_template_renders_both_texts():
    template = Template("{prompt} . {text} ? {mask} , {text_pair}")
    row = template.render("first", "second", 1)
    assert [s.text for s in row if s.kind == "text"] == ["first", "second"]
    assert template.takes_pair
    assert not Template(SST2).takes_pair


def test_text_that_looks_like_a_slot_stays_text():
    row = Template(SST2).render("{mask} {prompt}", "", 2)
    assert kinds(row).count("mask") == kinds(row).count("prompt") == 1
    assert Segment("text", "{mask} {prompt}") in row


@pytest.mark.parametrize(("n_tokens", "shares"), [(6, [2, 2, 2]), (7, [3, 2, 2]), (8, [3, 3, 2]), (1, [1, 0, 0])])
def test_several_prompt_places_share_the_tokens_in_order(n_tokens, shares):
    row = Template("{prompt} {text} {prompt} so {mask} {prompt}").render("t", "", n_tokens)
    assert [s.n_tokens for s in row if s.kind == "prompt"] == shares


def test_the_manual_template_is_the_words_without_the_prompt():
    assert Template(SST2).manual().source == "{text} . It was {mask} ."
    assert Template("{prompt} [ Category: {mask} ] {text}").manual().source == "[ Category: {mask} ] {text}"
    assert Template("{prompt} {text} . It is {mask}").manual().source == "{text} . It is {mask}"
    assert Template("{text} is {mask} {prompt}").manual().source == "{text} is {mask}"
    assert Template("{text} is {prompt} {mask} .").manual().source == "{text} is {mask} ."


@pytest.mark.parametrize(
    ("source", "manual"),
    [
        ("{prompt}\n\nReview: {text}\nSentiment:\n{mask}", "Review: {text}\nSentiment:\n{mask}"),
        ("Decide.\n{prompt}\n{text}\n{mask}", "Decide.\n{text}\n{mask}"),
        ("{text} {prompt}\n{mask}", "{text}\n{mask}"),
        ("{text}\n{prompt} {mask}", "{text}\n{mask}"),
        ("User:\n{prompt} .\n{text}\n{mask}\n", "User:\n{text}\n{mask}\n"),
        ("{text} is {mask} {prompt}{prompt}", "{text} is {mask}"),
        ("\n{text}\n{mask}\n", "\n{text}\n{mask}\n"),
    ],
)
def test_the_manual_template_keeps_its_newlines(source, manual):
    assert Template(source).manual().source == manual


def test_no_prompt_tokens_render_the_manual_template():
    template = Template(SST2)
    assert template.render("x", "", 0) == template.manual().render("x", "", 0)
    assert "prompt" not in kinds(template.render("x", "", 0))


def test_prompt_tokens_without_a_place_are_an_error():
    with pytest.raises(ConfigError, match=r"no {prompt} slot for the 4 prompt tokens"):
        Template("{text} is {mask}").render("x", "", 4)


def test_an_unknown_slot_names_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown slot 'txt'\. Did you mean 'text'\?"):
        Template("{prompt} {txt} {mask}")


@pytest.mark.parametrize("source", ["{prompt} {text}", "{text} {mask} {mask}", "{prompt} {mask}"])
def test_a_template_needs_text_and_exactly_one_mask(source):
    with pytest.raises(ConfigError, match=r"needs {text} and exactly one {mask}"):
        Template(source)
