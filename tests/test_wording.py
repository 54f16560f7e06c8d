"""Accuracies with fitted class biases and the choice of words in `examples/`."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def zero_shot(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    return importlib.import_module("pretrain_zero_shot")


@pytest.fixture
def wording(zero_shot: ModuleType) -> ModuleType:
    return importlib.import_module("choose_wording")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    texts = [{"text": f"a film so {word}", "label": label} for label, word in enumerate(("bad", "great"))]
    path.write_text("".join(json.dumps(row) + "\n" for row in texts * 20))
    return path


def test_shots_are_k_rows_of_each_class_and_another_seed_draws_others(zero_shot):
    labels = torch.tensor([0, 1, 1, 0, 1] * 20)
    drawn = zero_shot.shots(labels, 7, seed=0)
    assert torch.bincount(labels[drawn]).tolist() == [7, 7]
    assert len(set(drawn.tolist())) == 14
    assert torch.equal(drawn, zero_shot.shots(labels, 7, seed=0))
    assert not torch.equal(drawn, zero_shot.shots(labels, 7, seed=1))


def test_biases_take_off_what_a_label_word_has_before_any_text(zero_shot):
    labels = torch.tensor([0, 1] * 30)
    generator = torch.Generator().manual_seed(0)
    scores = torch.nn.functional.one_hot(labels) + 0.2 * torch.randn(60, 2, generator=generator)
    biased = scores + torch.tensor([9.0, 0.0])
    fit, other = slice(0, 20), slice(20, None)
    assert zero_shot.accuracy(biased, labels) == 0.5
    found = zero_shot.calibrated_accuracy(biased[other], labels[other], biased[fit], labels[fit])
    assert found == zero_shot.calibrated_accuracy(scores[other], labels[other], scores[fit], labels[fit]) > 0.9


def test_halves_share_no_row_and_have_as_many_of_each_class(wording):
    labels = torch.tensor([0] * 50 + [1] * 31 + [2] * 40)
    a, b = wording.halves(labels, limit=400)
    assert not set(a.tolist()) & set(b.tolist())
    assert torch.bincount(labels[a]).tolist() == torch.bincount(labels[b]).tolist() == [15] * 3
    assert len(wording.halves(labels, limit=30)[0]) == 15


def test_the_words_that_tell_the_classes_apart_are_chosen(wording):
    labels = torch.tensor([0, 1] * 40)
    told = torch.nn.functional.one_hot(labels).float()
    noise = torch.randn(80, 2, generator=torch.Generator().manual_seed(0))
    scores = torch.cat([noise, told], dim=1)  # words 0 and 1 tell nothing, 2 and 3 everything
    column = {"plain": 0, "dull": 1, "bad": 2, "great": 3}
    assert wording.chosen_words(scores, labels, [["plain", "bad"], ["dull", "great"]], column) == ["bad", "great"]
    assert wording.cross_fitted(scores[:, 2:], labels) == 1.0
    assert wording.cross_fitted(scores[:, :2], labels) < 0.75


def test_both_scripts_say_what_they_found(zero_shot, wording, tiny_folder, rows, monkeypatch, capsys):
    model, template = str(tiny_folder("bert")), "{text} . It was {mask} ."
    argv = ["zero_shot", model, str(rows), template, "bad,great", "--fit-on", str(rows), "--k", "4"]
    monkeypatch.setattr(sys, "argv", [*argv, "--precision", "bfloat16", "--threads", "1"])
    zero_shot.main()
    assert "with biases fitted on 4 rows a class: " in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["choose", model, str(rows), "bad/great,great/bad", template, "--threads", "1"])
    wording.main()
    said = capsys.readouterr().out
    assert said.startswith(
        "20 rows to choose on (A), 20 to confirm on (B)\n'{text} . It was {mask} .'\n  bad,great: A "
    )
