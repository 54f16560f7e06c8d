"""What is imported when: PyTorch and `transformers` take seconds, and only a local model needs them."""

import json
import subprocess
import sys

import pytest
from serving import serving

import bbt
from bbt.testing import ToyBackend

HEAVY = ("torch", "transformers")
SAY = f"\nimport json, sys; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"

RUN = {
    "data": {"k": 4},
    "evaluation": {"rows": 8},
    "prompt": {"n_prompt_tokens": 2, "intrinsic_dim": 4, "n_screened": 1},
    "optimizer": {"population_size": 4},
    "budget": {"queries": 8, "dev_every": 4},
}


def heavy_after(script, folder):
    """Which heavy modules a process of its own has imported after the script, as it ends; what it raises fails."""
    done = subprocess.run([sys.executable, "-c", script + SAY], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "script",
    [
        "import bbt",
        "import bbt.api, bbt.predictor, bbt.testing, bbt.compare.worker",
        "from bbt import Backend, Config, Predictor, run, tune",
        "import backends.http, backends.pool, backends.openai.text, backends.gauge",
        "import sys; sys.argv = ['bbt', '--help']\nfrom bbt.cli import main\n"
        "try:\n    main()\nexcept SystemExit as left:\n    assert not left.code",
        "import sys; sys.argv = ['bbt', 'ls', 'backends']\nfrom bbt.cli import main\n"
        "try:\n    main()\nexcept SystemExit as left:\n    assert not left.code",
    ],
)
def test_a_library_that_loads_no_model_imports_no_model_library(script, tmp_path):
    assert heavy_after(script, tmp_path) == []


def test_a_run_through_a_server_from_beginning_to_end_imports_none(tmp_path):
    with serving(ToyBackend()) as url:
        config = {**RUN, "name": "far", "model": {"backend": "http", "name": "toy", "options": {"url": url}}}
        script = (
            "import bbt\nfrom pathlib import Path\n"
            f"folder = bbt.run(bbt.make_config({config!r}), Path('.')).folder\n"
            "assert bbt.Predictor(folder).predict(['0.5'])\nbbt.resume(folder, 12)"
        )
        assert heavy_after(script, tmp_path) == []


# Of words alone: the tiny model's own label words, and prompts that fit into its 64 tokens.
WORDS = {**RUN, "task": {"name": "sst2", "label_words": ["bad", "great"]}}
TEXT = {"method": {"name": "hard-prompt"}, "selection": {"baselines": False}}


@pytest.mark.parametrize(
    ("backend", "changes"),
    [("text-api", TEXT), ("vllm", {}), ("vllm", {"precision": "bf16"}), ("vllm", {"precision": "fp16"})],
)
def test_a_run_through_an_endpoint_that_the_client_tokenises_for_imports_none(
    backend, changes, serve, tiny_folder, tmp_path
):
    folder = str(tiny_folder("gpt2"))
    options = {"url": (serve("llama", max_length=600) if backend == "text-api" else serve()).url}
    model = {"backend": backend, "name": folder, "options": options}
    config = {**WORDS, "name": "far", "model": model, **changes}
    if backend == "text-api":
        model["name"] = "peer"
        options |= {"vocabulary": folder, "top_logprobs": 500}
    elif "precision" in config:
        options["precision"] = config.pop("precision")
    script = (
        "import bbt\nfrom pathlib import Path\n"
        f"folder = bbt.run(bbt.make_config({config!r}), Path('.')).folder\n"
        "assert bbt.Predictor(folder).predict(['a great film'])"
    )
    assert heavy_after(script, tmp_path) == []


def test_the_bundled_vocabulary_is_read_without_them(tmp_path):
    assert heavy_after("from backends.openai.words import read_words\nread_words('gpt2-mini')", tmp_path) == []


def test_every_public_name_is_there_and_any_other_is_an_attribute_error():
    for name in bbt.__all__:
        assert getattr(bbt, name) is not None
    assert set(bbt.__all__) <= set(dir(bbt))
    with pytest.raises(AttributeError, match="no attribute 'Tunes'"):
        bbt.Tunes  # noqa: B018
