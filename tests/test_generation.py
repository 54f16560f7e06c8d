"""Tasks whose answer is a text, from files to what a run leaves behind."""

import json
import sys

import numpy as np
import pytest
import yaml
from toy import ToyBackend, shared_config

from bbt.api import resume, run
from bbt.backend import Decoding
from bbt.build import make_experiment
from bbt.cli import main
from bbt.config import make_config
from bbt.errors import BackendError, ConfigError, DataError, RunError
from bbt.methods import load_method, to_yaml
from bbt.methods.saved import load_classifier
from bbt.predictor import Predictor
from bbt.scoring.ledger import Ledger
from bbt.scoring.scorers import scorer_of
from bbt.scoring.targets import TargetJudge, TargetObjective
from bbt.settings import DataConfig, TaskConfig
from bbt.tasks import GENERATION_TASKS, Example, GenerationTask, Template
from bbt.tasks.configured import make_split, make_task
from bbt.tasks.sequence_metrics import load_sequence_metric

TEMPLATE = "{prompt} {source}\nQuestion : {source_pair}\nAnswer : {target}"
QUESTIONS = [
    {"story": f"a story about {who}", "asks": "who is it ?", "said": [who, f"a {who}"]}
    for who in ("friends", "a film", "the plot", "Sports", "News", "the World", "two friends", "Business")
]


@pytest.fixture
def rows(tmp_path):
    """A folder with a file of questions."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return tmp_path


# The same rows train and test here.
pytestmark = pytest.mark.filterwarnings("ignore:the parts of the data overlap")


def tree(folder, model="gpt2-mini", **changes):
    file = str(folder / "rows.jsonl")
    return {
        "task": {
            "name": "asked",
            "template": TEMPLATE,
            "metrics": ["token_f1", "bleu"],
            "decoding": {"max_new_tokens": 6},
            **changes.pop("task", {}),
        },
        "data": {
            "source": "files",
            "k": 2,
            "train": file,
            "test": file,
            "columns": {"source": "story", "source_pair": "asks", "target": "said"},
        },
        "model": {"name": str(model), "options": {"precision": "fp32", "device": "cpu"}},
        "prompt": {"n_prompt_tokens": 3, "intrinsic_dim": 8, "n_screened": 2},
        "optimizer": {"population_size": 4, "name": "cma"},
        "budget": {"queries": 22, "dev_every": 8},
        "selection": {"baselines": False},
        **changes,
    }


def config(*arguments, **changes):
    return shared_config(tree(*arguments, **changes))


def task(**changes):
    return GenerationTask("asked", Template(TEMPLATE), decoding=Decoding(max_new_tokens=6), **changes)


EXAMPLES = [Example(row["story"], 0, row["asks"], tuple(row["said"])) for row in QUESTIONS]


@pytest.mark.parametrize("loss", [None, "negative_metric"])
def test_a_search_is_saved_and_writes_again_what_it_wrote(tiny_folder, rows, loss):
    settings = {"objective": {"loss": loss}} if loss else {}
    outcome = run(config(rows, tiny_folder("gpt2"), **settings), rows / "runs")
    result, again = outcome.result, Predictor(outcome.folder)
    assert set(result["test"]) == set(result["perplexity"]) == {"manual", "untuned", "tuned"}
    assert set(result["test"]["tuned"]) == {"token_f1", "bleu"}
    assert result["signatures"]["bleu"].startswith("nrefs:")
    assert result["calibration"] == "none"
    records = [json.loads(line) for line in (outcome.folder / "outputs.jsonl").read_text().splitlines()]
    assert [record["references"] for record in records] == [list(e.targets) for e in EXAMPLES]
    texts = [record["output"] for record in records]
    predicted = again.predict([e.text for e in EXAMPLES], [e.text_pair for e in EXAMPLES])
    assert [one["output"] for one in predicted] == texts
    figures, _ = again.written(make_task(again.config.task, "causal"), EXAMPLES)
    assert figures == pytest.approx({**result["test"]["tuned"], "perplexity": result["perplexity"]["tuned"]})
    assert figures["token_f1"] == load_sequence_metric("token_f1")(texts, [e.targets for e in EXAMPLES])


def test_a_search_lowers_the_loss_of_the_targets(tiny_folder, rows):
    outcome = run(config(rows, tiny_folder("gpt2"), budget={"queries": 202, "dev_every": 50}), rows / "runs")
    assert outcome.result["perplexity"]["tuned"] < 0.9 * outcome.result["perplexity"]["untuned"]


def test_an_extended_run_is_the_longer_run(tiny_folder, rows):
    short = run(config(rows, tiny_folder("gpt2"), budget={"queries": 14, "dev_every": 4}), rows / "runs")
    long = run(config(rows, tiny_folder("gpt2"), budget={"queries": 22, "dev_every": 4}), rows / "runs")
    extended = resume(short.folder, 22).result
    assert [extended[key] for key in ("test", "perplexity", "selected")] == [
        long.result[key] for key in ("test", "perplexity", "selected")
    ]


@pytest.mark.filterwarnings("ignore:.* rows were longer")
@pytest.mark.parametrize("loss", [None, "negative_metric"])
def test_a_row_that_is_cut_is_counted_once(tiny_folder, tmp_path, loss):
    long = [{**row, "story": " ".join(["story"] * (200 + i))} for i, row in enumerate(QUESTIONS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    settings = {"objective": {"loss": loss}} if loss else {}
    result = run(config(tmp_path, tiny_folder("gpt2"), **settings), tmp_path / "runs").result
    assert result["cost"]["truncated"] == 4  # two train and two dev rows


@pytest.mark.parametrize("method", ["black-box", "prompt-tuning"])
def test_rows_that_are_cut_are_told_of_wherever_they_are(tiny_folder, tmp_path, caplog, method):
    long = [{**row, "story": " ".join(["story"] * (200 + i))} for i, row in enumerate(QUESTIONS)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    file = str(tmp_path / "long.jsonl")
    given = tree(tmp_path, tiny_folder("gpt2"), method={"name": method}, evaluation={"also_test": {"long": file}})
    given["data"]["train"] = file
    outcome = run(shared_config(given), tmp_path / "runs")
    cut = "{} of {} rows were longer than the model: their text was cut."
    assert cut.format(2, 2) in caplog.text
    assert outcome.result["test_truncated"] == len(QUESTIONS)  # of the other rows
    predictor = Predictor(outcome.folder)
    examples = [Example(row["story"], 0, row["asks"], tuple(row["said"])) for row in long]
    for answer in (
        lambda: predictor.predict([one.text for one in examples], [one.text_pair for one in examples]),
        lambda: predictor.written(predictor.task, examples),
    ):
        caplog.clear()
        answer()
        assert caplog.messages == [cut.format(8, 8)]


@pytest.mark.parametrize("method", ["manual", "in-context", "black-box", "prompt-tuning", "lora"])
def test_dev_rows_that_are_cut_are_told_of_once(tiny_folder, rows, caplog, method):
    long = [{**row, "story": " ".join(["story"] * (200 + i))} for i, row in enumerate(QUESTIONS)]
    (rows / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    given = tree(rows, tiny_folder("gpt2"), method={"name": method})
    given["data"]["dev"] = str(rows / "long.jsonl")
    run(shared_config(given), rows / "runs")
    assert [message for message in caplog.messages if "were longer than the model" in message] == [
        "8 of 8 rows were longer than the model: their text was cut."
    ]


def test_the_metric_that_is_sought_is_what_dev_chooses_by(rows):
    sought = {"objective": {"loss": "negative_metric"}}
    for changes, by in (
        ({}, "loss"),
        (sought, "metric"),
        ({**sought, "selection": {"n_best": 2}}, "metric"),
        ({**sought, "selection": {"by": "loss"}}, "loss"),
    ):
        assert load_method(config(rows, **changes)).selection.by == by
        assert load_method(shared_config(yaml.safe_load(to_yaml(config(rows, **changes))))).selection.by == by


def test_the_manual_prompt_alone(tiny_folder, rows):
    outcome = run(config(rows, tiny_folder("llama"), method={"name": "manual"}), rows / "runs")
    assert set(outcome.result["test"]) == {"tuned"}
    assert Predictor(outcome.folder).generates


@pytest.fixture
def scored(tiny_backend):
    """A backend, its prompts, and the rows' log-likelihoods under them."""
    backend = tiny_backend("gpt2")
    prompts = np.random.default_rng(0).normal(0, 1, (3, 4, 32)).astype(np.float32)
    pairs = backend.encode_pairs(task().rows(EXAMPLES, 4))
    return backend, prompts, backend.target_log_likelihoods(prompts, pairs), pairs.n_target_tokens


def test_the_loss_is_the_mean_over_all_tokens(scored):
    backend, prompts, found, n_tokens = scored
    ledger = Ledger()
    scorer = scorer_of(backend, task(), EXAMPLES, ledger)
    expected = -found.sum(axis=1) / n_tokens.sum()
    np.testing.assert_allclose(TargetObjective(scorer, "cross_entropy", ledger).losses(prompts), expected, rtol=1e-5)
    assert (ledger.train_queries, ledger.examples) == (3, 24)
    verdicts = TargetJudge(scorer, ledger).verdicts(prompts)
    np.testing.assert_allclose([verdict.loss for verdict in verdicts], expected, rtol=1e-5)
    np.testing.assert_allclose([np.mean(verdict.row_losses) for verdict in verdicts], expected, rtol=1e-5)
    assert ledger.dev_queries == 3


def test_the_metric_itself_is_minimised(scored):
    backend, prompts, _, _ = scored
    losses = TargetObjective(scorer_of(backend, task(), EXAMPLES, Ledger()), "negative_metric", Ledger()).losses(
        prompts
    )
    contexts = backend.encode_contexts(task().rows(EXAMPLES, 4), 6)
    texts = [backend.generate(prompt[None], contexts, task().decoding) for prompt in prompts]
    np.testing.assert_allclose(losses, [-task().text_metric(one, EXAMPLES) for one in texts])


def test_a_broken_prompt_is_the_worst(scored):
    backend, prompts, _, _ = scored
    broken = np.where(np.arange(3)[:, None, None] == 1, np.nan, prompts).astype(np.float32)
    scorer = scorer_of(backend, task(), EXAMPLES, Ledger())
    assert np.isinf(TargetObjective(scorer, "cross_entropy", Ledger()).losses(broken)).tolist() == [False, True, False]
    assert TargetJudge(scorer, Ledger()).verdicts(broken)[1].metric == 0


def test_only_the_source_is_cut_and_a_target_ends_in_its_stop_string(tiny_backend):
    backend = tiny_backend("gpt2")
    long = Example(" ".join(["story"] * 90), 0, "is it a good film ?", ("two\nfriends",))
    (pair,) = backend.encode_pairs(task().rows([long], 4)).pairs
    assert pair.context.truncated
    assert backend.prompt_text([i for i in pair.context.ids if i >= 0]).endswith(
        "\nQuestion : is it a good film ?\nAnswer :"
    )
    assert backend.prompt_text(pair.target) == " two friends\n"
    ledger = Ledger()
    scorer = scorer_of(backend, task(), [long], ledger)
    for _ in range(2):  # what is written again is not cut again
        scorer.texts(np.zeros((1, 4, 32), np.float32))
    assert ledger.truncated == 1
    with pytest.raises(BackendError, match="Take fewer prompt tokens"):
        backend.encode_pairs(task().rows([Example("a", 0, long.text, ("b",))], 4))


@pytest.fixture
def bbt(capsys, monkeypatch):
    """Arguments -> exit code and output of the command."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["bbt", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code or 0, capsys.readouterr().out

    return call


def test_the_command_line_answers_and_evaluates(tiny_folder, rows, bbt):
    path = rows / "config.yaml"
    path.write_text(json.dumps(tree(rows, tiny_folder("gpt2"), name="asked")))
    code, said = bbt("run", path, "--runs", rows / "runs")
    assert (code, "perplexity" in said) == (0, True)
    folder = rows / "runs" / "asked"
    code, said = bbt("predict", folder, "--file", rows / "rows.jsonl")
    answered = [json.loads(line) for line in said.splitlines()]
    assert [{key: one[key] for key in row} for one, row in zip(answered, QUESTIONS, strict=True)] == QUESTIONS
    code, said = bbt("eval", folder, "--predictions", rows / "out.jsonl", "--json")
    result = json.loads((folder / "result.json").read_text())
    assert {key: json.loads(said)[key] for key in ("token_f1", "bleu")} == pytest.approx(result["test"]["tuned"])
    written = [json.loads(line) for line in (rows / "out.jsonl").read_text().splitlines()]
    assert [one["output"] for one in written] == [one["output"] for one in answered]
    assert written[0]["source_pair"] == "who is it ?"
    code, said = bbt("eval", folder)
    assert (code, "bleu: nrefs" in said) == (0, True)
    assert bbt("eval", folder, "--task", "sst2")[0] == 2


@pytest.mark.parametrize("name", sorted(GENERATION_TASKS))
def test_built_in_tasks_read_their_columns(tmp_path, name):
    spec = GENERATION_TASKS[name]
    columns = spec.columns
    lines = [
        {columns.text: f"text {i}", columns.text_pair or "other": "pair", columns.target: f"answer {i}"}
        for i in range(6)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = make_task(TaskConfig(name=name, decoding={"n_beams": 4}), "causal")
    assert isinstance(asked, GenerationTask)
    assert asked.decoding == Decoding(spec.decoding.max_new_tokens, n_beams=4)
    file = str(tmp_path / "rows.jsonl")
    split = make_split(DataConfig(source="files", k=2, train=file, test=file), asked, 0)
    assert [len(split.train), len(split.dev), len(split.test)] == [2, 2, 6]
    assert split.test[3] == Example("text 3", 0, "pair" if asked.template.takes_pair else "", ("answer 3",))


def test_targets_come_as_a_text_as_several_and_as_squad_has_them(tmp_path):
    given = ["one", ["one", "two"], {"text": ["one"], "answer_start": [3]}, 7]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"source": "a", "target": one}) + "\n" for one in given))
    file = str(tmp_path / "rows.jsonl")
    own = make_task(TaskConfig(name="own", template="{source} {target}"), "causal")
    split = make_split(DataConfig(source="files", k=1, train=file, test=file), own, 0)
    assert [e.targets for e in split.test] == [("one",), ("one", "two"), ("one",), ("7",)]
    (tmp_path / "rows.jsonl").write_text('{"source": "a", "target": [""]}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:1: a target under 'target' is empty"):
        make_split(DataConfig(source="files", k=1, train=file, test=file), own, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": {"label_words": ["a", "b"]}}, "generates text and has no labels"),
        ({"task": {"scored_by": "likelihood"}}, "is for labels"),
        ({"task": {"metrics": ["accuracy"]}}, "unknown metric 'accuracy'"),
        ({"task": {"template": "{source} {target} ."}}, "once and last"),
        ({"task": {"template": "{text} {target}"}}, "once and last"),
        ({"task": {"template": None, "name": "sst2"}}, "sst2 generates no text"),
        ({"objective": {"loss": "hinge"}}, "is for tasks with labels"),
        ({"prompt": {"placement": "layernorm"}}, "does not go with a task whose answer is a text"),
        ({"evaluation": {"also_test": {"other": None}}}, "name a file of rows with targets"),
        ({"data": {"columns": {"text": "story"}}}, "name source and target"),
    ],
)
def test_what_does_not_go_with_generation_is_said(tiny_backend, rows, changes, message):
    given = tree(rows, **{**changes, "data": {}} if "data" in changes else changes)
    if "data" in changes:
        given["data"] = {**tree(rows)["data"], **changes["data"]}
    own = shared_config(given)
    with pytest.raises(ConfigError, match=message):
        load_method(own).train(make_experiment(own, tiny_backend("gpt2")))


def test_backends_and_models_that_cannot_are_named(tiny_backend, tiny_folder, rows):
    for backend, message in (
        (ToyBackend(), "needs likelihoods of targets"),
        (tiny_backend("bert"), "only a causal LM"),
    ):
        with pytest.raises(BackendError, match=message):
            load_method(config(rows)).train(make_experiment(config(rows), backend))


def test_a_run_that_writes_is_no_classifier(tiny_folder, tiny_backend, rows):
    outcome = run(config(rows, tiny_folder("gpt2"), method={"name": "manual"}), rows / "runs")
    with pytest.raises(RunError, match="answers with texts"):
        load_classifier(outcome.folder, tiny_backend("gpt2"))
    with pytest.raises(RunError, match="answers with texts"):
        Predictor(outcome.folder).predict_proba(["a story"], ["who ?"])


def test_a_run_s_config_is_read_back(rows):
    made = make_config(tree(rows))
    assert make_config(made.model_dump(mode="json", exclude={"format"}) | made.sections).task == made.task
