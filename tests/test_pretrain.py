"""The parts of `examples/pretrain.py`: rows, masks, and training that stops and goes on."""

import importlib
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
every_device = pytest.mark.parametrize("device", DEVICES)
SPECIALS = {"cls": 1, "sep": 2, "mask": 3}


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> "type[Part]":
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent.parent / "examples"), *sys.path])
    return Part


class Part:
    """The examples' modules, which find one another beside them."""

    def __class_getitem__(cls, name: str) -> ModuleType:
        return importlib.import_module(name)


def corpus(part: "type[Part]", device: str, n_tokens: int = 1000):
    """Two files; a sentence starts at every tenth token of the first and at every 25th of the second."""
    starts = torch.cat([torch.arange(0, 500, 10), torch.arange(500, n_tokens, 25)])
    tokens = torch.arange(n_tokens, dtype=torch.int32) % 50 + 4
    tables = (tokens, starts, torch.tensor([0, 50]), torch.tensor([50, 20]), torch.tensor([3.0, 1.0]))
    return part["pretrain_text"].Corpus(*(t.to(device) for t in tables))


@every_device
def test_rows_touch_a_sentence_boundary_and_files_come_by_their_weights(part, device):
    text = corpus(part, device)
    text.tokens = torch.arange(1000, dtype=torch.int32, device=device)
    rows = text.rows(4000, 7, torch.Generator(device).manual_seed(0))
    assert rows.device.type == device
    assert (rows.diff() == 1).all()
    boundaries = set(text.starts.tolist())
    ends = [row[0] in boundaries or row[-1] + 1 in boundaries for row in rows.tolist()]
    assert all(ends)
    assert (rows[:, 0] < 496).float().mean().item() == pytest.approx(0.75, abs=0.03)


@every_device
def test_every_row_loses_as_many_tokens_and_the_targets_are_what_stood_there(part, device):
    model = part["pretrain_model"]
    rows = corpus(part, device).rows(64, 18, torch.Generator(device).manual_seed(1))
    odds = model.mask_odds(torch.ones(54, device=device), [0, 1, 2, 3], 1.0)
    generator = torch.Generator(device).manual_seed(2)
    inputs, places, targets = model.masked_batch(rows, SPECIALS, odds, 0.25, generator)
    assert places.shape == (64, 5)
    assert ((inputs == SPECIALS["mask"]).sum(1) == 5).all()
    assert torch.equal(inputs.scatter(1, places, targets)[:, 1:-1], rows)
    assert (targets >= 4).all()


def test_frequent_words_are_masked_less_often(part):
    odds = part["pretrain_model"].mask_odds(torch.tensor([0.0, 1.0, 100.0, 899.0]), [0], 0.01)
    assert odds.tolist() == pytest.approx([1e-6, 1.0, 0.1**0.5, (10 / 899) ** 0.5])


def trainer_of(part: "type[Part]", device: str):
    """Trainer and objective of a tiny BERT with dropout, Muon and two lengths."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    settings = {"kind": "mlm", "device": torch.device(device), "dropout": 0.3, "muon": True, "lr": 1e-2, "warmup": 0.1}
    schedule = {"steps": 6, "seed": 5, "lengths": [8, 16], "batch_tokens": 64, "mask_rate": 0.25, "mask_pivot": 1e-3}
    args = Namespace(**settings, **schedule, compile=False)
    model = BertForMaskedLM(BertConfig(vocab_size=54, max_position_embeddings=16, **shape))
    text = corpus(part, device)
    return part["pretrain"].Trainer(model, args), part["pretrain_model"].Objective(args, FewTokens(), text), text


class FewTokens:
    """What an objective asks of a tokenizer."""

    all_special_ids: ClassVar = [0, 1, 2, 3]
    cls_token_id, sep_token_id, mask_token_id = SPECIALS.values()

    def __len__(self) -> int:
        return 54


@every_device
def test_training_that_was_stopped_goes_on_as_if_it_had_not_been(part, device, tmp_path):
    whole, objective, text = trainer_of(part, device)
    losses = [whole.update(objective, text).item() for _ in range(6)]
    stopped, objective, text = trainer_of(part, device)
    first = [stopped.update(objective, text).item() for _ in range(3)]
    stopped.save(tmp_path / "state.pt")
    resumed, objective, text = trainer_of(part, device)
    resumed.load(tmp_path / "state.pt")
    objective.held_out(resumed.model, text)
    assert losses == first + [resumed.update(objective, text).item() for _ in range(3)]
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=0, atol=0)


@every_device
def test_the_weights_stay_fp32_and_the_held_out_loss_knows_no_dropout(part, device):
    trainer, objective, text = trainer_of(part, device)
    trainer.update(objective, text)
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert {m.p for m in trainer.model.modules() if isinstance(m, torch.nn.Dropout)} == {0.3}
    assert objective.held_out(trainer.model, text) == objective.held_out(trainer.model, text)
    assert trainer.model.training
