"""The benchmark compares equal work: its plain loop is plain transformers, its counts are right."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reference import normalised
from typer.testing import CliRunner

from backends.bench import Workload, measure, table
from backends.bench.memory import peak_memory_mb
from backends.bench.plain import PlainLoop
from backends.bench.rates import MatrixRate, operations
from backends.bench.workload import Generations
from bbt.cli import app
from bbt.errors import BackendError
from bbt.tasks.template import Template

TEXTS = ["a film so bad that it was great", "bad", "the plot , slow and warm"]
TEMPLATE = "{prompt} . {text} . It was {mask}"
SENTIMENT = ("bad", "great")
ARCHITECTURES = ("bert", "roberta", "gpt2", "llama")


@pytest.fixture
def on(tiny_backend, reference):
    """name -> backend, rows encoded, the plain loop on them, and plain transformers row by row."""

    def make(name):
        backend = tiny_backend(name)
        encoded = backend.encode([Template(TEMPLATE).render(text, "", 5) for text in TEXTS], SENTIMENT)
        loop = PlainLoop(reference(name).model, encoded.rows, encoded.label_ids.tolist())
        ids = [reference(name).ids(TEMPLATE, (5,), text) for text in TEXTS]
        one_by_one = lambda prompt: np.array(  # noqa: E731
            [reference(name).log_probs(row, prompt, (" bad", " great")) for row in ids]
        )
        return SimpleNamespace(backend=backend, encoded=encoded, loop=loop, one_by_one=one_by_one)

    return make


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_plain_loop_is_plain_transformers(name, on, random_prompts):
    case, (prompt,) = on(name), random_prompts(1, 5)
    np.testing.assert_allclose(normalised(case.loop.scores(prompt)), case.one_by_one(prompt), atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_plain_loop_takes_deep_prompts(name, on, random_prompts):
    case, flat = on(name), random_prompts(4, 5, scale=0.5)
    deep = flat.reshape(2, 2, 5, 32)
    plain = np.stack([case.loop.scores(prompt) for prompt in deep])
    np.testing.assert_allclose(
        normalised(case.backend.deep_label_scores(deep, case.encoded)), normalised(plain), atol=1e-4
    )
    shallow = deep.copy()
    shallow[:, 1] = 0
    np.testing.assert_allclose(case.loop.scores(shallow[0]), case.loop.scores(deep[0, 0]), atol=1e-5)
    assert np.abs(plain[0] - case.loop.scores(deep[0, 0])).max() > 0.01, "the upper prompt did nothing"


def test_operations_are_those_of_the_products_and_of_attention(reference):
    model = reference("bert").model.base_model
    n, tokens, hidden, wide, layers = 3, 10, 32, 64, 2
    products = 2 * n * tokens * (4 * hidden**2 + 2 * hidden * wide)
    attention = 4 * n * tokens * tokens * hidden
    inputs = torch.randn(n, tokens, hidden)
    with torch.inference_mode():
        counted = operations(lambda: model(inputs_embeds=inputs))
    assert counted == layers * (products + attention)


def test_the_chip_is_measured_by_the_layers_shapes_and_a_square(tiny_backend):
    rate = MatrixRate(tiny_backend("bert").model, n_tokens=128)
    assert set(rate.by_shape) == {(128, 32, 32), (128, 32, 64), (2048, 2048, 2048)}
    assert rate.by_shape[rate.shape] == max(rate.by_shape.values()) > 0
    assert rate.measure() > 0


def test_peak_memory_is_the_works_own():
    def allocate(megabytes):
        return lambda: torch.ones(megabytes * 250_000).sum()

    before, peak = peak_memory_mb(allocate(400), torch.device("cpu"))
    assert 350 < peak - before < 500
    before, peak = peak_memory_mb(allocate(100), torch.device("cpu"))
    assert 50 < peak - before < 200, "the earlier peak was not forgotten"


def test_rows_of_given_lengths():
    work = Generations(Workload("minilm-mlm", lengths=(3, 10), n_rows=5, n_prompt_tokens=7, device="cpu"))
    lengths = np.array([len(row.ids) for row in work.encoded.rows])
    assert (np.diff(lengths) == [7, -7, 7, -7]).all()


def test_rows_of_a_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": "word " * (1 + i % 3), "label": i % 4}) + "\n" for i in range(200)))
    work = Generations(Workload("minilm-mlm", task="agnews", data=path, device="cpu"))
    assert work.encoded.n_examples == 64


def test_a_turn_of_the_deep_search_moves_one_layer(tiny_folder):
    work = Generations(Workload(str(tiny_folder("bert")), deep=True, intrinsic_dim=4, n_prompt_tokens=3, lengths=(4,)))
    latents = work.optimizer.ask()
    assert list(work.layers) == [0, 1]
    for layer in work.layers:
        prompts = work.prompts(latents, layer, seed=1)
        moved = (prompts != prompts[:1]).any(axis=(0, 2, 3))
        assert moved.tolist() == [i == layer for i in range(2)]
    assert not np.array_equal(work.prompts(latents, 1, seed=1)[:, 0], work.prompts(latents, 1, seed=2)[:, 0])


@pytest.mark.parametrize("name", ["bert", "gpt2"])
@pytest.mark.parametrize("deep", [False, True])
def test_a_measurement_compares_equal_scores(name, deep, tiny_folder):
    workload = Workload(
        str(tiny_folder(name)), lengths=(3, 8), n_rows=4, population_size=6, n_prompt_tokens=5, intrinsic_dim=8,
        device="cpu", precision="fp32", deep=deep,
    )  # fmt: skip
    result = json.loads(json.dumps(measure(workload, "plain", plain_queries=4, repeats=2)))
    against = result["against"]
    assert against["max_log_probability_difference"] < 1e-5
    assert against["min_rank_correlation"] > 0.99
    assert against["queries_per_repeat"] == 4 * (2 if deep else 1)
    for low, median, high in (
        (value[1], value[0], value[2])
        for value in (against["speedup"], result["queries_per_second"], result["share_of_matrix_rate"])
    ):
        assert 0 < low <= median <= high
    assert result["rows"] == 4
    assert result["operations_per_query"] > 0
    assert set(result["parts_ms"]) == {"optimizer", "projection", "embedding", "trunk", "head", "loss"}
    assert all(milliseconds > 0 for milliseconds in result["parts_ms"].values())
    assert {"threads", "torch", "token_budget"} < set(result)
    assert all(len(row) == 2 for row in table(result))


def test_the_plain_loop_in_full_precision_beside_half(tiny_folder):
    workload = Workload(str(tiny_folder("bert")), lengths=(3, 8), n_prompt_tokens=5, device="cpu", precision="bf16")
    result = measure(workload, "plain-fp32", repeats=1)
    assert result["precision"] == "bfloat16"
    assert 1e-5 < result["against"]["max_log_probability_difference"] < 0.5


def test_an_unknown_model_is_the_backends_error():
    with pytest.raises(BackendError, match="cannot load model 'no/such'"):
        measure(Workload("no/such"))


def test_the_command_prints_a_table_or_json(tiny_folder):
    small = ["--population", "3", "--prompt-tokens", "3", "--dim", "4", "--repeats", "1", "--device", "cpu"]
    command = ["bench", str(tiny_folder("bert")), *small, "--precision", "fp32", "--against", "plain"]
    result = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert result["against"]["max_log_probability_difference"] < 1e-4
    assert (result["population_size"], result["rows"]) == (3, 32)
    assert "times as fast as plain" in CliRunner().invoke(app, command).stdout


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_likelihoods_of_an_encoder_decoder_are_measured_against_a_plain_loop(name, tiny_folder, tmp_path):
    rows = [{"context": text, "question": "bad ?", "answers": ["a film", "bad"][:n]} for n, text in enumerate(TEXTS, 1)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        "--task",
        "squad",
        "--data",
        str(tmp_path / "rows.jsonl"),
        "--rows",
        "3",
        "--against",
        "plain",
        "--json",
    ]
    few = ["--population", "2", "--prompt-tokens", "3", "--dim", "4", "--precision", "fp32", "--device", "cpu"]
    said = CliRunner().invoke(app, ["bench", str(tiny_folder(name)), *arguments, *few, "--repeats", "1"])
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert found["rows"] == 3
    assert found["against"]["max_log_probability_difference"] < 1e-4
    assert found["parts_ms"]["trunk"] > 0
