"""A prompt that is carried away: the lines of an export's page, which use plain PEFT and transformers, give the numbers
that bbt gives."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import PAIR, TEXTS, run_page
from safetensors.numpy import load_file
from serving import serving
from tiny_models import ARCHITECTURES, CAUSAL, HIDDEN

import bbt
from backends.http import HttpBackend
from backends.local import LocalBackend
from bbt.baselines.peft_training import peft_imported
from bbt.errors import BackendError, ConfigError, PromptError
from bbt.experiment.classifiers import SoftPromptClassifier
from bbt.export import export
from bbt.prompts.soft import SoftPrompt
from bbt.scoring.ledger import Ledger
from bbt.spaces.initial import saved_prompt
from bbt.tasks import Example, Task, Template

CARRY = Path(__file__).parents[1] / "docs/how-to/carry.md"
WORDS, NAMES, BIASES = ("bad", "great"), ("down", "up"), (-0.25, 0.25)
FIRST = "{prompt} . {text} . It was {mask}"
START = "{start}{text} . It was {mask}"
MANUAL = "{text} . It was {mask}"
TEMPLATES = {
    "first": FIRST,
    "start": START,
    "first, words after the mask": FIRST + " , indeed",
    "a pair": "{prompt} {text} ? {text_pair} . It was {mask}",
    "a pair at the start": "{start}{text} ? {text_pair} . It was {mask}",
    "close to the text": "{prompt}{text} . It was {mask}",
}


def classifier_of(backend, embeddings, template=FIRST, **more):
    """A soft prompt on its model, as `Experiment.soft_prompt` makes it."""
    task = Task("moods", Template(template), NAMES, WORDS)
    info = backend.info
    prompt = SoftPrompt(embeddings, info.name, info.fingerprint, template, WORDS, NAMES, biases=BIASES, **more)
    return SoftPromptClassifier(backend, task, prompt)


@pytest.fixture
def classifier(tiny_backend, random_prompts):
    """(architecture, template, T) -> a classifier with a random prompt and class biases."""

    def make(name, template=FIRST, n_tokens=5):
        return classifier_of(tiny_backend(name), random_prompts(1, n_tokens)[0], template)

    return make


def probabilities_of(classifier, texts):
    return torch.from_numpy(np.asarray(scores_of(classifier, texts))).double().softmax(-1).numpy()


def scores_of(classifier, texts):
    return classifier.scores([Example(text, 0, PAIR) for text in texts], Ledger())


def assert_same(page, expected, tolerance=1e-5):
    assert list(page) == list(NAMES)
    np.testing.assert_allclose(list(page.values()), expected, atol=tolerance)


@pytest.mark.parametrize("name", [*ARCHITECTURES, "t5", "bart"])
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("to", ["peft", "transformers"])
def test_the_pages_lines_give_the_numbers_of_bbt(name, template, to, classifier, tmp_path, monkeypatch):
    if name in CAUSAL and "after the mask" in template:
        pytest.skip("a causal LM reads the token after the template's end")
    ours = classifier(name, TEMPLATES[template])
    unlike_any_text = {
        ("llama", "close to the text"),  # its tokenizer writes no first word without a space
        ("bart", "first, words after the mask"),  # its decoder is given the row's own words
    }
    if (name, template) in unlike_any_text:
        with pytest.raises(BackendError, match="no text has the tokens of these rows"):
            export(ours, ours.backend, to, tmp_path / to)
        return
    assert export(ours, ours.backend, to, tmp_path / to)
    for text, scores, expected in zip(TEXTS, scores_of(ours, TEXTS), probabilities_of(ours, TEXTS), strict=True):
        probabilities, names = run_page(tmp_path / to, monkeypatch, text)
        np.testing.assert_allclose(names["scores"], scores, atol=1e-5)  # logits of the label words, and class biases
        assert_same(probabilities, expected)


@pytest.mark.parametrize("to", ["peft", "transformers"])
def test_weights_kept_in_half_precision_score_as_ours_do(to, tmp_path, monkeypatch, random_prompts):
    backend = LocalBackend("minilm-mlm", precision="fp32")  # its file holds 16 bits a number
    ours = classifier_of(backend, random_prompts(1, 3, backend.info.hidden_size)[0])
    export(ours, backend, to, tmp_path)
    _, names = run_page(tmp_path, monkeypatch, TEXTS[0])
    np.testing.assert_allclose(names["scores"], scores_of(ours, TEXTS[:1])[0], atol=1e-5)


@pytest.mark.parametrize("to", ["peft", "transformers"])
def test_labels_that_are_read_from_many_words_are_read_so_elsewhere(
    to, tiny_backend, random_prompts, tmp_path, monkeypatch
):
    backend = tiny_backend("bert")
    weights = np.array([[1.0, 0.0, 0.5, -0.5], [0.0, 1.0, -2.0, 2.0]], np.float32)
    plain = classifier_of(backend, random_prompts(1, 3)[0], weights=weights, words=("film", "plot"))
    ours = SoftPromptClassifier.loaded(plain.prompt, backend)
    export(ours, backend, to, tmp_path / to)
    _, names = run_page(tmp_path / to, monkeypatch, TEXTS[0])
    np.testing.assert_allclose(names["scores"], scores_of(ours, TEXTS)[0], atol=1e-5)
    assert (
        np.abs(scores_of(ours, TEXTS) - scores_of(classifier_of(backend, plain.prompt.embeddings), TEXTS)).max() > 0.1
    )
    if to == "peft":
        read = SoftPrompt.from_peft(tmp_path / to)
        np.testing.assert_array_equal(read.weights, weights)
        assert read.words == ("film", "plot")


@pytest.mark.parametrize(
    ("name", "to"), [("bert", "peft"), ("gpt2", "peft"), ("gpt2", "transformers"), ("gpt2", "vllm")]
)
def test_the_documentation_shows_the_lines_of_the_pages(name, to, classifier, tmp_path):
    ours = classifier(name)
    export(ours, ours.backend, to, tmp_path)
    (lines,) = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), flags=re.S)
    assert lines in CARRY.read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")  # PEFT's own, of its own call
@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("template", [FIRST, START], ids=["first", "start"])
def test_peft_generates_what_the_tuned_rows_generate(name, template, classifier, reference, tmp_path, monkeypatch):
    ours = classifier(name, template)
    export(ours, ours.backend, "peft", tmp_path)
    _, names = run_page(tmp_path, monkeypatch, TEXTS[0])
    ids = names["ids"]
    with torch.no_grad():
        found = names["model"].generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, min_new_tokens=12, do_sample=False,
            pad_token_id=0,
        )[0, ids.shape[1] :].tolist()  # fmt: skip
    assert found == greedy(reference(name), ours, TEXTS[0], 12)


@torch.no_grad()
def greedy(plain, ours, text, n):
    """Tokens that follow our row in plain transformers, the likeliest one at a time; the model's end is forbidden."""
    (row,) = ours.backend.encode(ours.task.rows([Example(text, 0)], 5), WORDS).rows
    words, model = plain.model.get_input_embeddings(), plain.model
    prompt = torch.from_numpy(ours.prompt.embeddings)
    embeddings = torch.stack([prompt[-1 - i] if i < 0 else words.weight[i] for i in row.ids])[None]
    tokens = []
    for _ in range(n):
        logits = model(inputs_embeds=embeddings).logits[0, -1]
        logits[model.generation_config.eos_token_id] = -torch.inf
        tokens.append(int(logits.argmax()))
        embeddings = torch.cat([embeddings, words.weight[tokens[-1]][None, None]], dim=1)
    return tokens


def test_a_plain_export_of_a_llama_with_bos_would_be_off(classifier, tmp_path):
    ours = classifier("llama")
    export(ours, ours.backend, "peft", tmp_path)
    facts = json.loads((tmp_path / "classifier.json").read_text())
    vectors = load_file(tmp_path / "adapter_model.safetensors")
    assert facts["leading_ids"] == [1]
    assert not facts["add_special_tokens"]
    assert vectors["prompt_embeddings"].shape == (6, HIDDEN)
    at_start = classifier("llama", START)
    assert np.abs(probabilities_of(ours, TEXTS) - probabilities_of(at_start, TEXTS)).max() > 1e-3


@pytest.mark.parametrize("name", CAUSAL)
def test_vllm_gives_the_numbers_of_bbt(name, classifier, serve, tmp_path, monkeypatch):
    ours, peer = classifier(name), serve(name)
    export(ours, ours.backend, "vllm", tmp_path)
    served = {"http://localhost:8000": peer.url, '"model": facts["model"]': f'"model": {peer.name!r}'}
    page, _ = run_page(tmp_path, monkeypatch, TEXTS[0], **served)
    assert_same(page, probabilities_of(ours, TEXTS[:1])[0])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_start_is_before_everything(name, classifier, reference):
    ours, plain = classifier(name, START), reference(name)
    for text in TEXTS:
        ids = [plain.tokenizer.convert_tokens_to_ids("<prompt-token>")] * 5 + plain.ids(MANUAL, text=text)
        words = [f" {word}" for word in WORDS]
        expected = np.exp(plain.log_probs(ids, ours.prompt.embeddings, words))
        tilted = expected * np.exp(BIASES)
        np.testing.assert_allclose(probabilities_of(ours, [text])[0], tilted / tilted.sum(), atol=1e-5)


def test_the_start_goes_over_the_wire(classifier, tiny_backend):
    ours = classifier("bert", START)
    with serving(tiny_backend("bert")) as url:
        remote = classifier_of(HttpBackend(ours.prompt.model, url=url), ours.prompt.embeddings, START)
        np.testing.assert_allclose(probabilities_of(remote, TEXTS), probabilities_of(ours, TEXTS), atol=1e-6)


def test_start_is_a_slot_of_its_own():
    template = Template("{prompt} . {text} . It was {mask}").at_start()
    assert template.source == "{start}{text} . It was {mask}"
    assert template.at_start() == template
    assert template.manual().source == MANUAL
    for wrong in ("{text} {start} {mask}", "{start}{prompt} {text} {mask}", "{start}{start}{text} {mask}"):
        with pytest.raises(ConfigError, match=r"\{start\} comes first, once, and without a \{prompt\}"):
            Template(wrong)


@pytest.mark.parametrize("template", [FIRST, START])
@pytest.mark.parametrize("name", ["llama", "roberta"])
def test_a_prompt_comes_back_from_peft(name, template, classifier, tmp_path):
    ours = classifier(name, template)
    ours.prompt.to_peft(tmp_path / "carried", ours.backend)
    back = SoftPrompt.from_peft(tmp_path / "carried")
    np.testing.assert_array_equal(back.embeddings, ours.prompt.embeddings)
    fields = ("model", "fingerprint", "template", "label_words", "label_names", "biases", "provenance")
    assert [getattr(back, field) for field in fields] == [getattr(ours.prompt, field) for field in fields]
    predictor = bbt.Predictor(tmp_path / "carried", {"precision": "fp32", "device": "cpu"})
    np.testing.assert_allclose(predictor.predict_proba(TEXTS), probabilities_of(ours, TEXTS), atol=1e-6)


def foreign(folder, plain, n_tokens=3):
    """What plain PEFT saves of a prompt of its own."""
    with peft_imported():
        from peft import PromptTuningConfig, get_peft_model

        model = get_peft_model(plain.model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=n_tokens))
        model.save_pretrained(folder)
    return model.prompt_encoder["default"].embedding.weight.detach().numpy()


def search(model, **prompt):
    return {
        "task": {"name": "sst2"},
        "data": {"k": 4},
        "model": {"name": str(model), "options": {"precision": "fp32", "device": "cpu"}},
        "prompt": {"n_prompt_tokens": 3, "n_screened": 1, "intrinsic_dim": 4, **prompt},
        "budget": {"queries": 40, "dev_every": 20},
        "evaluation": {"rows": 10, "references": False},
    }


def test_a_foreign_prompt_of_peft_is_a_p0(tiny_folder, tiny_backend, tmp_path):
    from reference import Reference

    vectors = foreign(tmp_path / "theirs", Reference(tiny_folder("gpt2"), "causal"))
    np.testing.assert_array_equal(saved_prompt(tmp_path / "theirs", tiny_backend("gpt2"), 3)[0], vectors)
    outcome = bbt.tune(search(tiny_folder("gpt2"), init=str(tmp_path / "theirs"), placement="start"))
    assert outcome.result["selected"]["train_queries"] <= 40
    with pytest.raises(PromptError, match=r"has shape \(3, 32\), the run needs"):
        saved_prompt(tmp_path / "theirs", tiny_backend("gpt2"), 4)


def test_a_search_at_the_start_is_exported_as_it_is(tiny_folder, tmp_path, monkeypatch):
    config = search(tiny_folder("llama"), placement="start")
    outcome = bbt.tune({**config, "selection": {"baselines": False}})
    prompt = outcome.classifier.prompt
    assert prompt.template.startswith("{start}{text}")
    outcome.classifier.prompt.to_peft(tmp_path, outcome.classifier.backend)
    np.testing.assert_array_equal(
        load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"], prompt.embeddings
    )


def test_the_manual_prompt_has_no_vectors_and_is_exported_in_words(classifier, tmp_path, monkeypatch):
    ours = classifier("roberta", n_tokens=0)
    assert not export(ours, ours.backend, "peft", tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["README.md", "classifier.json"]
    assert_same(run_page(tmp_path, monkeypatch, TEXTS[0])[0], probabilities_of(ours, TEXTS[:1])[0])
    with pytest.raises(PromptError, match="the manual prompt: there is no soft prompt to deploy"):
        ours.prompt.to_peft(tmp_path, ours.backend)


def test_what_cannot_be_exact_is_refused_in_one_line(classifier, tiny_backend, random_prompts, tmp_path):
    backend = tiny_backend("bert")
    late = classifier("bert", "{text} {prompt} it was {mask}")
    shared = classifier("bert", "{prompt} {text} {prompt} it was {mask}")
    for ours in (late, shared):
        with pytest.raises(BackendError, match=r"Tune with prompt.placement: start"):
            export(ours, backend, "peft", tmp_path)
    anchored = classifier_of(backend, random_prompts(1, 5)[0], anchor=random_prompts(1, 5, seed=1)[0])
    deep = classifier_of(backend, random_prompts(2, 5))
    other = classifier("gpt2")
    for ours, says in ((anchored, "layernorm"), (deep, "a deep prompt"), (other, "this prompt was tuned for")):
        with pytest.raises(PromptError, match=says):
            export(ours, backend, "peft", tmp_path)
    with pytest.raises(ConfigError, match="vLLM serves causal LMs"):
        export(classifier("bert"), backend, "vllm", tmp_path)
    with pytest.raises(ConfigError, match=r"unknown target 'pefd'\. Did you mean 'peft'"):
        export(classifier("bert"), backend, "pefd", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "says"),
    [("{", "is no folder of PEFT's prompt tuning"), ('{"peft_type": "LORA"}', "a soft prompt is of PROMPT_TUNING")],
)
def test_what_is_no_prompt_of_peft_is_refused(config, says, tmp_path):
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(PromptError, match=says):
        SoftPrompt.load(tmp_path)


def test_the_command_exports_a_run_and_says_where_nothing_is_to_deploy(tiny_folder, tmp_path, capsys, monkeypatch):
    from bbt.api import run
    from bbt.cli import app
    from bbt.config import make_config
    from bbt.runs.report import selected_line

    config = search(tiny_folder("gpt2"))
    tuned = run(make_config({**config, "name": "tuned", "selection": {"baselines": False}}), tmp_path)
    manual = run(make_config({**config, "name": "manual", "selection": {"margin": 1e6}}), tmp_path)
    assert selected_line(manual.result).endswith("; no soft prompt to deploy")
    assert "no soft prompt" not in selected_line(tuned.result)
    monkeypatch.chdir(tmp_path)
    for name in ("tuned", "manual"):
        app(["export", name, f"carried/{name}", "--to", "safetensors"], standalone_mode=False)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "carried/tuned"
    assert said[1].startswith("no soft prompt to deploy: the manual prompt was selected")
    assert (tmp_path / "carried" / "tuned" / "prompt_embeds.safetensors").is_file()
    facts = json.loads((tmp_path / "carried" / "manual" / "classifier.json").read_text())
    assert facts["text"] == "{text} . The sentiment is"
    assert facts["biases"] == list(manual.classifier.prompt.biases)


LABELS = ("not a good film", "great")


def scorer_of_labels(backend, embeddings, scored_by, template=FIRST):
    """A soft prompt whose labels are scored by their likelihood, as `Experiment.soft_prompt` makes it."""
    info = backend.info
    own = {"biases": BIASES, "scored_by": scored_by}
    prompt = SoftPrompt(embeddings, info.name, info.fingerprint, template, LABELS, NAMES, **own)
    return SoftPromptClassifier.loaded(prompt, backend)


@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")  # PEFT's own, of its own call
@pytest.mark.parametrize(
    ("name", "scored_by", "template"),
    [
        ("gpt2", "likelihood", FIRST),
        ("llama", "mean_likelihood", START),
        ("t5", "mean_likelihood", FIRST),
        ("t5", "likelihood", FIRST + " ."),  # what the decoder says in the sentinel's place
        ("bart", "likelihood", START),
    ],
)
@pytest.mark.parametrize("to", ["peft", "transformers", "manual"])
def test_labels_that_are_scored_by_likelihood_are_carried_away(
    name, scored_by, template, to, tiny_backend, random_prompts, tmp_path, monkeypatch
):
    ours = scorer_of_labels(tiny_backend(name), random_prompts(1, 0 if to == "manual" else 5)[0], scored_by, template)
    assert export(ours, ours.backend, "peft" if to == "manual" else to, tmp_path) == (to != "manual")
    for text, scores, expected in zip(TEXTS, scores_of(ours, TEXTS), probabilities_of(ours, TEXTS), strict=True):
        probabilities, names = run_page(tmp_path, monkeypatch, text)
        np.testing.assert_allclose(names["scores"], scores, atol=1e-4)
        assert_same(probabilities, expected, tolerance=1e-4)


def test_vllm_scores_labels_by_their_likelihood_too(tiny_backend, serve, random_prompts, tmp_path, monkeypatch):
    ours = scorer_of_labels(tiny_backend("gpt2"), random_prompts(1, 5)[0], "mean_likelihood")
    export(ours, ours.backend, "vllm", tmp_path)
    peer = serve("gpt2")
    served = {"http://localhost:8000": peer.url, '"model": facts["model"]': f'"model": {peer.name!r}'}
    for text, expected in zip(TEXTS[:2], probabilities_of(ours, TEXTS[:2]), strict=True):
        assert_same(run_page(tmp_path, monkeypatch, text, **served)[0], expected, tolerance=1e-4)


def test_a_prompt_of_labels_by_likelihood_is_itself_again_after_peft(tiny_backend, random_prompts, tmp_path):
    ours = scorer_of_labels(tiny_backend("gpt2"), random_prompts(1, 5)[0], "mean_likelihood")
    ours.prompt.to_peft(tmp_path, ours.backend)
    again = SoftPromptClassifier.loaded(SoftPrompt.from_peft(tmp_path), ours.backend)
    assert again.task.scored_by == "mean_likelihood"
    np.testing.assert_array_equal(scores_of(again, TEXTS), scores_of(ours, TEXTS))
