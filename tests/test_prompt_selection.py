"""Prompt selection: the template that the model finds likeliest, or the one that does best on dev."""

import numpy as np
import pytest
import torch
from toy import shared_config

from bbt.api import run
from bbt.build import make_experiment
from bbt.errors import ConfigError
from bbt.runs.log import EventLog

TEMPLATES = ["{text} . It was {mask} .", "{mask} News : {text}", "{text} Question : is it a good film ? {mask} ."]


ROWS = "text,label\na film,0\nthe plot is bad,0\nI liked it,1\ngreat,1\nit was slow,0\na warm story,1\nfunny,1\nbad,0\n"


pytestmark = pytest.mark.filterwarnings("ignore:the parts of the data overlap")


@pytest.fixture(autouse=True)
def _rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text(ROWS)


def settings(model, by, templates=TEMPLATES):
    return shared_config(
        {
            "data": {"k": 2, "source": "files", "train": "rows.csv", "test": "rows.csv"},
            "method": {"name": "prompt-selection", "by": by, "templates": templates},
            "model": {"name": str(model), "options": {"precision": "fp32", "device": "cpu"}},
            "selection": {"by": "loss"},
            "calibration": "none",
        }
    )


def log_of(outcome):
    return EventLog(outcome.folder / "events.jsonl")


def loss(model, row):
    """Mean over the tokens from the second on."""
    return torch.nn.functional.cross_entropy(model(row).logits[0, :-1], row[0, 1:])


@torch.no_grad()
def test_the_likeliest_template_is_chosen(tiny_folder, reference, tmp_path):
    """A causal LM's perplexity is exp of its own loss, averaged over the training rows."""
    templates = ["{text} . It was {mask}", "Question : is it a good film ? {text} {mask}"]
    outcome = run(settings(tiny_folder("gpt2"), "perplexity", templates), tmp_path / "runs")
    plain, rows = reference("gpt2"), make_experiment(outcome.config, outcome.classifier.backend).split.train
    for template, event in zip(templates, log_of(outcome).of("perplexity"), strict=True):
        ids = [torch.tensor([plain.ids(template, text=row.text)]) for row in rows]
        expected = np.mean([loss(plain.model, row).exp().item() for row in ids])
        assert event["template"] == template
        assert event["perplexity"] == pytest.approx(expected, rel=1e-4)
    values = [event["perplexity"] for event in log_of(outcome).of("perplexity")]
    assert outcome.result["selected"]["who"] == templates[int(np.argmin(values))]
    cost = outcome.result["cost"]
    assert (cost["train_queries"], cost["dev_queries"]) == (2, 1)


def test_a_masked_models_passes_are_all_counted(tiny_folder, tmp_path):
    outcome = run(settings(tiny_folder("bert"), "perplexity"), tmp_path / "runs")
    cost = outcome.result["cost"]
    assert cost["train_queries"] > 3 * 5  # a forward pass a token
    assert cost["examples"] > 4 * 3 * 5
    assert len(log_of(outcome).of("perplexity")) == 3


def test_dev_chooses_where_it_is_asked_to(tiny_folder, tmp_path):
    outcome = run(settings(tiny_folder("bert"), "dev"), tmp_path / "runs")
    losses = [event["losses"][0] for event in log_of(outcome).of("dev")]
    assert outcome.result["selected"]["who"] == TEMPLATES[int(np.argmin(losses))]
    assert outcome.classifier.prompt.template == TEMPLATES[int(np.argmin(losses))]
    assert len(set(losses)) == 3 == outcome.result["cost"]["dev_queries"]
    assert outcome.result["cost"]["train_queries"] == 0


def test_a_template_that_cannot_be_used_is_an_error(tiny_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"unknown slot 'txet'\. Did you mean 'text'"):
        run(settings(tiny_folder("bert"), "dev", ["{txet} {mask}", *TEMPLATES]), tmp_path / "runs")
    assert not list((tmp_path / "runs").iterdir())
