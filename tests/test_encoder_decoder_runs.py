"""Whole runs on an encoder-decoder, from the command line and from Python."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from test_generation import EXAMPLES, QUESTIONS
from test_generation import tree as questions
from toy import shared_config

from backends.local import LocalBackend
from bbt.api import run, tune
from bbt.baselines.peft_training import peft_imported
from bbt.build import make_experiment
from bbt.cli import main
from bbt.config import merged, read_tree
from bbt.predictor import Predictor
from bbt.prompts.soft import SoftPrompt
from bbt.scoring.ledger import Ledger
from bbt.tasks import Example

CONFIGS = Path(__file__).parents[1] / "configs" / "encoder-decoder"
TEMPLATE = "{prompt} {text} . It was {mask} ."


def tree(folder, **changes):
    return {
        "task": {"name": "sst2", "template": TEMPLATE},
        "data": {"k": 4},
        "model": {"name": str(folder), "options": {"precision": "fp32", "device": "cpu"}},
        "prompt": {"n_prompt_tokens": 4, "intrinsic_dim": 10, "n_screened": 2},
        "optimizer": {"population_size": 4},
        "budget": {"queries": 22, "dev_every": 8},
        "selection": {"baselines": False},
        "evaluation": {"rows": 12},
        **changes,
    }


@pytest.fixture
def bbt(capsys, monkeypatch):
    """A command's standard output; it must succeed."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["bbt", *map(str, arguments)])
        code = None
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        out, err = capsys.readouterr()
        assert not code, err
        return out

    return call


# The bundled rows are longer than a tiny model.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.* rows were longer"),
    pytest.mark.filterwarnings("ignore:the parts of the data overlap"),
]


def test_run_resume_predict_eval_and_export_from_the_command_line(bbt, tiny_folder, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree(tiny_folder("t5"), name="first")))
    bbt("run", tmp_path / "config.yaml", "--runs", tmp_path)
    result = json.loads((tmp_path / "first" / "result.json").read_text())
    assert {"manual", "untuned", "tuned"} <= set(result["test"])
    bbt("resume", tmp_path / "first", "--budget", 38)
    extended = json.loads((tmp_path / "first" / "result.json").read_text())
    assert extended["cost"]["train_queries"] > result["cost"]["train_queries"]
    longer = tree(tiny_folder("t5"), name="longer", budget={"queries": 38, "dev_every": 8})
    (tmp_path / "longer.yaml").write_text(yaml.safe_dump(longer))
    bbt("run", tmp_path / "longer.yaml", "--runs", tmp_path)
    assert json.loads((tmp_path / "longer" / "result.json").read_text())["test"] == extended["test"]
    answer = json.loads(bbt("predict", tmp_path / "first", "a film so bad that it was great"))
    predictor = Predictor(tmp_path / "first")
    assert answer == {"text": answer["text"], **predictor.predict([answer["text"]])[0]}
    tested = json.loads(bbt("eval", tmp_path / "first", "--json"))
    assert tested["accuracy"] == pytest.approx(extended["test"]["tuned"]["accuracy"])
    bbt("export", tmp_path / "first", tmp_path / "carried")
    facts = json.loads((tmp_path / "carried" / "classifier.json").read_text())
    assert (facts["kind"], len(facts["decoder_ids"])) == ("encoder-decoder", 2)
    carried = Predictor(tmp_path / "carried", {"precision": "fp32", "device": "cpu"})
    np.testing.assert_allclose(*(one.predict_proba(["bad", "a film"]) for one in (carried, predictor)), atol=1e-6)


def test_a_prompt_of_plain_peft_is_a_start(tiny_folder, tmp_path):
    """PEFT makes vectors for an encoder and a decoder, and puts the encoder's first."""
    from transformers import AutoModelForSeq2SeqLM

    with peft_imported():
        from peft import PromptTuningConfig, get_peft_model

        config = PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4)
        model = get_peft_model(AutoModelForSeq2SeqLM.from_pretrained(tiny_folder("t5")), config)
        model.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    vectors = load_file(tmp_path / "theirs" / "adapter_model.safetensors")["prompt_embeddings"]
    assert vectors.shape == (8, 32)
    np.testing.assert_array_equal(SoftPrompt.from_peft(tmp_path / "theirs").embeddings, vectors[:4])


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize("loss", [None, "negative_metric"])
def test_a_task_that_writes(name, loss, tiny_folder, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    settings = {"objective": {"loss": loss}} if loss else {}
    outcome = run(shared_config(questions(tmp_path, tiny_folder(name), **settings)), tmp_path / "runs")
    records = [json.loads(line) for line in (outcome.folder / "outputs.jsonl").read_text().splitlines()]
    predicted = Predictor(outcome.folder).predict([e.text for e in EXAMPLES], [e.text_pair for e in EXAMPLES])
    assert [one["output"] for one in predicted] == [record["output"] for record in records]
    assert set(outcome.result["perplexity"]) == {"manual", "untuned", "tuned"}


def test_labels_of_several_tokens_are_scored_by_what_the_decoder_says(tiny_folder, tmp_path):
    words = ("not a good film", "great")
    task = {"name": "sst2", "template": "{prompt} {text} . It was {mask}", "label_words": words}
    config = shared_config(tree(tiny_folder("t5"), task={**task, "scored_by": "likelihood"}))
    outcome = run(config, tmp_path)
    backend = LocalBackend(str(tiny_folder("t5")), precision="fp32", device="cpu")
    found = make_experiment(config, backend).manual.scores([Example("a film", 0)], Ledger())
    (row,) = outcome.classifier.task.rows([Example("a film", 0)], 0)
    targets = outcome.classifier.task.labelled_rows([Example("a film", 0)], 0)
    likely = backend.target_log_likelihoods(np.zeros((1, 0, 32), np.float32), backend.encode_pairs(targets))
    np.testing.assert_allclose(found, likely, atol=1e-5)
    assert row[-1].kind == "mask"


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_shipped_configs_run_on_a_small_model(file, tiny_folder):
    small = tree(tiny_folder("t5"), data={"k": 4})
    config = merged(read_tree(file), {key: small[key] for key in ("data", "model", "evaluation")})
    config["data"]["source"] = "bundled"
    if config.get("method"):
        config = merged(config, {"prompt": {"n_prompt_tokens": 5}, "method": {"steps": 2}})
    else:
        config = merged(config, {key: small[key] for key in ("prompt", "optimizer", "budget")})
    assert tune(config).result["test"]["tuned"]["accuracy"] >= 0
