"""What we save as PEFT's is PEFT's: loaded by plain PEFT around a plain model, it gives the logits that ours gives."""

from functools import partial

import numpy as np
import pytest
import torch
from reference import Reference
from tiny_models import kind_of
from toy import shared_config

from bbt.api import run
from bbt.baselines.peft_training import peft_imported
from bbt.build import make_experiment
from bbt.predictor import Predictor
from bbt.scoring.judge import Verdict
from bbt.scoring.ledger import Ledger
from bbt.tasks import Example

TEXTS = ["a film so bad that it was great", "the plot is worse", "I liked it ; you did not"]
WORDS = ("bad", "great")
TEMPLATE = "{prompt} . {text} . It was {mask}"
PREFIXES = [{"n_prefix_tokens": 3}, {"n_prefix_tokens": 5, "projection": True}]


@pytest.fixture
def trained(tiny_folder, tmp_path, monkeypatch):
    """(architecture, method, its settings) -> a run of two large steps whose last state is kept."""
    monkeypatch.setattr(Verdict, "better_than", lambda self, other, by: True)

    def make(name, method, **settings):
        task = {"name": "sst2", "template": TEMPLATE, "label_words": WORDS, "label_names": ["negative", "positive"]}
        config = {
            "task": task,
            "data": {"k": 4},
            "model": {"name": str(tiny_folder(name)), "options": {"precision": "fp32", "device": "cpu"}},
            "method": {"name": method, "batch_size": 8, "steps": 2, "learning_rate": 0.1, **settings},
            "prompt": {"n_prompt_tokens": 4, "n_screened": 1},
            "evaluation": {"rows": 10, "references": False},
            "calibration": "none",
        }
        return run(shared_config(config), tmp_path / "runs")

    return make


def peft_logits(plain: Reference, adapter, texts, template) -> np.ndarray:
    """(B, K) as a user of PEFT has them: a batch padded at the right by the tokenizer, its mask, nothing else."""
    tokenizer, masked, decodes = plain.tokenizer, plain.kind == "masked", plain.kind == "encoder-decoder"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    written = [template.format(text=text, mask=tokenizer.mask_token if masked else "").rstrip() for text in texts]
    batch = tokenizer(written, return_tensors="pt", padding=True)
    with peft_imported():
        from peft import PeftModel

        model = PeftModel.from_pretrained(plain.model, adapter).eval()
    with torch.no_grad():
        said = plain.decoded(batch["input_ids"][0])
        said = {key: ids.repeat(len(texts), 1) for key, ids in said.items()}
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **said).logits
    if decodes:
        return logits[:, -1, [plain.word_id(word) for word in WORDS]].numpy()
    found = batch["input_ids"] == tokenizer.mask_token_id
    read = found.long().argmax(1) if masked else batch["attention_mask"].sum(1) - 1
    label_ids = [plain.word_id(f" {word}") for word in WORDS]
    n_prompt_tokens = logits.shape[1] - batch["input_ids"].shape[1]
    return logits[torch.arange(len(texts)), n_prompt_tokens + read][:, label_ids].numpy()


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "llama", "t5", "bart"])
@pytest.mark.parametrize(
    ("method", "settings"),
    [("lora", {}), *(("prefix-tuning", settings) for settings in PREFIXES)],
    ids=["lora", "prefix", "projected prefix"],
)
def test_a_saved_adapter_is_the_same_in_peft(name, method, settings, trained, tiny_folder):
    outcome = trained(name, method, **settings)
    plain = partial(Reference, tiny_folder(name), kind_of(name))
    for texts in (TEXTS, TEXTS[:1]):  # with padding, and without
        examples = [Example(text, 0) for text in texts]
        expected = peft_logits(plain(), outcome.folder / "adapter", texts, "{text} . It was {mask}")
        for classifier in (outcome.classifier, Predictor(outcome.folder).classifier):
            np.testing.assert_allclose(classifier.scores(examples, Ledger()), expected, atol=1e-4)
        untuned = make_experiment(outcome.config, Predictor(outcome.folder).backend).manual.scores(examples, Ledger())
        assert np.abs(untuned - expected).max() > 0.01, "the adapter does nothing"


@pytest.mark.parametrize("method", ["prompt-tuning", "p-tuning"])
@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_a_soft_prompt_at_the_start_is_prompt_tuning_of_peft(name, method, trained, tiny_folder, tmp_path):
    """GPT-2 and T5 put no token of their own before a text. Where a model does, PEFT's prompt stands left of that token
    and the template's right of it: those prompts have no counterpart in PEFT, and none is claimed."""
    outcome, plain = trained(name, method), partial(Reference, tiny_folder(name), kind_of(name))
    vectors = torch.from_numpy(outcome.classifier.prompt.embeddings)
    with peft_imported():
        from peft import PromptTuningConfig, get_peft_model

        kind = {"gpt2": "CAUSAL_LM", "t5": "SEQ_2_SEQ_LM"}[name]
        config = PromptTuningConfig(task_type=kind, num_virtual_tokens=len(vectors), num_transformer_submodules=1)
        model = get_peft_model(plain().model, config)
        model.prompt_encoder["default"].embedding.weight.data.copy_(vectors)
        model.save_pretrained(tmp_path / "peft", save_embedding_layers=False)
    expected = peft_logits(plain(), tmp_path / "peft", TEXTS, " . {text} . It was {mask}")
    found = outcome.classifier.scores([Example(text, 0) for text in TEXTS], Ledger())
    np.testing.assert_allclose(found, expected, atol=1e-4)
