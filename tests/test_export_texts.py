"""A prompt that writes is carried away: the lines of its export's page write what bbt writes."""

import json
import shutil

import numpy as np
import pytest
from pages import PAIR, TEXTS, run_page
from tiny_models import CAUSAL

from backends.local import LocalBackend
from bbt.backend import Decoding
from bbt.experiment.generators import SoftPromptGenerator
from bbt.export import export
from bbt.prompts.soft import SoftPrompt
from bbt.scoring.ledger import Ledger
from bbt.tasks import Example

ASKED = "{prompt} {source}\nQuestion : {source_pair}\nAnswer : {target}"


def generator_of(backend, embeddings, template=ASKED, **decoding):
    """A soft prompt that writes, as `Experiment.generator` makes it."""
    info, decoding = backend.info, Decoding(**{"max_new_tokens": 7, "stop": ("was",), **decoding})
    facts = {"scored_by": "generation", "decoding": decoding}
    prompt = SoftPrompt(embeddings, info.name, info.fingerprint, template, (), (), **facts)
    return SoftPromptGenerator.loaded(prompt, backend)


@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")  # PEFT's own, of its own call
@pytest.mark.parametrize("name", [*CAUSAL, "mt5", "bart"])
@pytest.mark.parametrize("template", [ASKED, ASKED.replace("{prompt} ", "{start}")], ids=["first", "start"])
@pytest.mark.parametrize("to", ["peft", "transformers", "manual"])
def test_the_pages_lines_write_what_bbt_writes(name, template, to, tiny_backend, random_prompts, tmp_path, monkeypatch):
    ours = generator_of(tiny_backend(name), random_prompts(1, 0 if to == "manual" else 5)[0], template)
    assert export(ours, ours.backend, "peft" if to == "manual" else to, tmp_path) == (to != "manual")
    expected = ours.texts([Example(text, 0, PAIR) for text in TEXTS], Ledger())
    for text, written in zip(TEXTS, expected, strict=True):
        assert run_page(tmp_path, monkeypatch, text, what="answer")[0] == written
    assert len(set(expected)) > 1


@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")  # PEFT's own, of its own call
@pytest.mark.parametrize("to", ["peft", "transformers", "manual"])
def test_a_model_with_several_end_tokens_ends_elsewhere_as_it_does_here(
    to, tiny_folder, random_prompts, tmp_path, monkeypatch
):
    """An ordinary token may end an answer as well as a special one, and is no part of it."""
    model = tmp_path / "model"
    shutil.copytree(tiny_folder("gpt2"), model)
    embeddings = random_prompts(1, 0 if to == "manual" else 5)[0]

    def here_and_there():
        ours = generator_of(LocalBackend(str(model), precision="fp32", device="cpu"), embeddings)
        export(ours, ours.backend, "peft" if to == "manual" else to, tmp_path / "export")
        (here,) = ours.texts([Example(TEXTS[0], 0, PAIR)], Ledger())
        return here, *run_page(tmp_path / "export", monkeypatch, TEXTS[0], what="answer")

    whole, _, names = here_and_there()
    ends = [0, names["new"][4], names["new"][2]]
    for told, other in (("generation_config.json", "config.json"), ("config.json", "generation_config.json")):
        for file, value in ((told, ends), (other, None)):
            settings = json.loads((model / file).read_text())
            (model / file).write_text(json.dumps({**settings, "eos_token_id": value}))
        here, there, names = here_and_there()
        assert here == there != whole
        assert len(names["new"]) <= 3


@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")  # PEFT's own, of its own call
@pytest.mark.parametrize("name", ["gpt2", "llama", "mt5", "bart"])
@pytest.mark.parametrize("to", ["peft", "transformers", "manual"])
def test_beams_end_where_the_first_of_several_stop_strings_comes(
    name, to, tiny_backend, random_prompts, tmp_path, monkeypatch
):
    embeddings = random_prompts(1, 0 if to == "manual" else 5)[0]
    ours = generator_of(tiny_backend(name), embeddings, n_beams=3, stop=("r", "s", "or", "wor", "ad", "d", "a", "e"))
    export(ours, ours.backend, "peft" if to == "manual" else to, tmp_path)
    expected = ours.texts([Example(text, 0, PAIR) for text in TEXTS], Ledger())
    assert [run_page(tmp_path, monkeypatch, text, what="answer")[0] for text in TEXTS] == expected


def test_a_prompt_that_writes_is_itself_again_after_peft(tiny_backend, random_prompts, tmp_path):
    ours = generator_of(tiny_backend("llama"), random_prompts(1, 5)[0])
    ours.prompt.to_peft(tmp_path, ours.backend)
    again = SoftPrompt.from_peft(tmp_path)
    np.testing.assert_array_equal(again.embeddings, ours.prompt.embeddings)
    assert (again.decoding, again.template) == (ours.prompt.decoding, ASKED)
    examples = [Example(text, 0, PAIR) for text in TEXTS]
    loaded = SoftPromptGenerator.loaded(again, ours.backend)
    assert loaded.texts(examples, Ledger()) == ours.texts(examples, Ledger())
