"""Every example runs as its first lines say."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from serving import serving
from tiny_models import DEVICE
from transformers import AutoModelForMaskedLM

import bbt.api
from bbt.baselines.peft_training import peft_imported
from bbt.config import make_config

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(script: str, *args: object, cwd: Path) -> str:
    command = [sys.executable, str(EXAMPLES / script), *map(str, args)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart_tunes_saves_and_predicts(tmp_path: Path) -> None:
    lines = run("quickstart.py", cwd=tmp_path).splitlines()
    assert set(eval(lines[0])) == {"manual", "manual calibrated", "untuned", "tuned"}
    assert eval(lines[1])[0]["label"] in ("negative", "positive")
    assert (tmp_path / "sst2-tuned/prompt.safetensors").is_file()


def test_a_dataframe_becomes_probabilities_and_a_folder_that_plain_peft_loads(tmp_path: Path) -> None:
    probabilities, exported = run("dataframe.py", cwd=tmp_path).rsplit("\n", 2)[:2]
    rows = [[float(p) for p in row.strip(" []").split()] for row in probabilities.splitlines()]
    assert [len(row) for row in rows] == [4, 4]
    assert [sum(row) for row in rows] == pytest.approx([1.0, 1.0], abs=0.01)
    assert exported == "True"
    facts = json.loads((tmp_path / "carried/classifier.json").read_text())
    plain = AutoModelForMaskedLM.from_pretrained(facts["model"])
    with peft_imported():
        tuned = PeftModel.from_pretrained(plain, tmp_path / "carried")
    assert tuned.peft_config["default"].num_virtual_tokens == facts["n_virtual_tokens"] > 0


def test_bundle_data_keeps_the_reference_split(tmp_path: Path) -> None:
    from bbt.tasks.data import k_shot
    from bbt.tasks.examples import Columns, read_examples

    rows = [{"text": f"row {i}", "label": i % 2} for i in range(100)]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("bundle_data.py", "sst2", source, source, tmp_path / "out", cwd=tmp_path)
    shipped = [json.loads(line) for line in (tmp_path / "out" / "few_shot.jsonl").read_text().splitlines()]
    train, dev = k_shot(read_examples(source, Columns(), ["0", "1"]), 16, 7, ["a", "b"])
    assert [row["text"] for row in shipped if row["seed"] == 7] == [e.text for e in [*train, *dev]]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = [f"Review {i} says that the film was {word} ." for i in range(200) for word in ("bad", "great")]
    (folder / "reviews.txt").write_text("\n\n".join(lines))
    return folder


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
SIZE = "--layers 1 --width 32 --heads 2 --vocab 300 --positions 64 --lengths 16,32 --batch-tokens 256 --threads 1"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("kind", "template"), [("mlm", "{text} . It was {mask} ."), ("causal", "{text} It was {mask}")]
)
def test_pretrain_resumes_and_its_model_is_scored(
    tmp_path: Path, corpus: Path, kind: str, template: str, device: str
) -> None:
    out = tmp_path / "model"
    words = tmp_path / "words.txt"
    words.write_text("bad great")
    recipe = f"--muon --dropout 0.1 --held-out 20 --device {device}"
    command = [corpus, "--kind", kind, "--out", out, "--keep-words", words, *SIZE.split(), *recipe.split()]
    run("pretrain.py", *command, "--steps", 2, cwd=tmp_path)
    run("pretrain.py", *command, "--steps", 4, "--resume", cwd=tmp_path)
    curve = (tmp_path / "model.work" / "curve.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in curve] == [2, 4]
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "A film", "label": 1}\n{"text": "A bore", "label": 0}\n')
    assert "2 rows" in run("pretrain_zero_shot.py", out, rows, template, "bad,great", cwd=tmp_path)


def test_remote_tunes_through_a_server_and_the_load_test_counts_its_answers(tiny_folder, tiny_backend) -> None:
    model = str(tiny_folder("bert"))
    with serving(tiny_backend("bert")) as url:
        lines = run("remote.py", "--url", url, "--model", model, "--queries", 40, cwd=tiny_folder("bert")).splitlines()
        said = run("load_test.py", "--url", url, "--clients", 3, "--seconds", 2, cwd=tiny_folder("bert"))
    assert set(eval(lines[0])) == {"manual", "manual calibrated", "untuned", "tuned"}
    assert re.fullmatch(r"a query: \d+ bytes up, \d+ bytes down", lines[1])
    assert re.search(r"answers: \{'200': \d+\}\nlatency, seconds: p50 ", said)


def test_the_check_of_a_gpu_prints_every_figure(tmp_path: Path) -> None:
    printed = run("gpu_check.py", "--tiny", "--device", DEVICE, cwd=tmp_path)
    assert "failed" not in printed
    assert "not measured" not in printed
    for figure in (
        "a search of 17 queries, s",
        "outside the backend",
        "deep prompts: times plain",
        "share of the matrix",
    ):
        assert figure in printed


def test_logs_say_what_racing_would_save_and_what_averaging_means_gives(tiny_folder: Any, tmp_path: Path) -> None:
    """A race that is run to its end on all candidates keeps all of the better half, and the last mean is the run's."""
    settings = {
        "task": {"name": "sst2"},
        "model": {"name": str(tiny_folder("bert")), "options": {"precision": "fp32"}},
        "prompt": {"n_prompt_tokens": 2, "n_screened": 2, "intrinsic_dim": 20},
        "budget": {"queries": 38, "dev_every": 36},
        "selection": {"baselines": False},
        "method": {"name": "black-box", "n_words": 0},
        "evaluation": {"rows": 20, "references": False},
    }
    for name in ("cma-separable", "kernel-surrogate"):
        tree = {**settings, "name": name, "optimizer": {"name": name, "population_size": 12}}
        bbt.api.run(make_config(tree), tmp_path)
    raced = run("racing.py", tmp_path / "kernel-surrogate", cwd=tmp_path).splitlines()
    assert raced[0] == "3 generations of 1 runs, 20 draws each"
    kept = [float(line.split("saved, ")[1].split("%")[0]) for line in raced[1:]]
    assert kept == sorted(kept[:3]) + sorted(kept[3:])
    assert 50 < kept[-1] <= 100
    line = run("averaged_means.py", tmp_path / "cma-separable", cwd=tmp_path).splitlines()[0]
    dev = json.loads((tmp_path / "cma-separable/events.jsonl").read_text().splitlines()[-2])
    assert dev["names"][0] == "mean"
    assert float(line.split("last: ")[1].split()[1]) == pytest.approx(dev["losses"][0], abs=1e-3)
