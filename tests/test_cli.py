import io
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import yaml

from bbt.cli import main
from bbt.cli.progress import progress_bar
from bbt.runs.folder import RunFolder

CONFIG = {
    "name": "mine",
    "data": {"k": 8},
    "prompt": {"n_prompt_tokens": 3, "intrinsic_dim": 10},
    "optimizer": {"population_size": 5},
    "budget": {"queries": 20, "dev_every": 10},
}


@dataclass
class Said:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def bbt(tmp_path, monkeypatch, capsys):
    """The command in this process, in an empty folder: it starts at once where torch is loaded already."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments, stdin=""):
        monkeypatch.setattr(sys, "argv", ["bbt", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        return Said(left.value.code or 0, *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def model(tiny_folder):
    return {"name": str(tiny_folder("bert")), "options": {"precision": "fp32", "device": "cpu"}}


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """Folder of a finished run."""
    from bbt.api import run
    from bbt.config import make_config

    return run(make_config({**CONFIG, "model": model}), tmp_path_factory.mktemp("runs")).folder


def written(folder, **changes):
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "model": {"backend": "bbt.testing:ToyBackend"}, **changes}))
    return path


def assert_one_line(process, *words):
    """Exit code 2, one line on standard error that holds these words, nothing else."""
    assert process.returncode == 2, process.stderr
    assert process.stdout == ""
    assert process.stderr.endswith("\n")
    assert process.stderr.count("\n") == 1, process.stderr
    for word in words:
        assert word in process.stderr


def test_help_names_every_command(bbt):
    said = bbt("--help")
    assert said.returncode == 0
    for command in ("run", "resume", "eval", "predict", "ls", "show"):
        assert f" {command} " in said.stdout


def test_importing_bbt_and_asking_for_help_load_no_model_or_number_library():
    heavy = "{'torch', 'transformers', 'sklearn', 'cma', 'nevergrad', 'matplotlib', 'scipy', 'backends'}"
    for statement in ("import bbt", "from bbt.cli import app; app(['--help'], standalone_mode=False)"):
        code = f"import sys; {statement}; print('loaded:', {heavy} & set(sys.modules))"
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert said.stdout.endswith("loaded: set()\n")


def test_the_installed_command_ends_an_error_with_exit_code_2_and_one_line(tmp_path):
    arguments = ["run", written(tmp_path, seeds=1)]
    assert_one_line(
        subprocess.run([sys.executable, "-W", "error", "-m", "bbt.cli", *arguments], capture_output=True, text=True),
        "unknown key 'seeds'",
    )


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("tasks", "sst2 agnews mrpc"),
        ("methods", "black-box lora"),
        ("optimizers", "cma random PSO"),
        ("losses", "cross_entropy hinge negative_metric"),
        ("metrics", "accuracy f1 macro_f1"),
        ("observers", ""),
        ("backends", "local http pool text-api vllm"),
    ],
)
def test_ls_lists_names_with_what_they_are(bbt, what, names):
    listed = json.loads(bbt("ls", what, "--json").stdout)
    about = {row["name"]: row["about"] for row in listed}
    assert set(names.split()) <= set(about)
    assert all(about.values())
    table = bbt("ls", what)
    assert table.returncode == 0
    assert all(name in table.stdout for name in names.split())


def test_ls_models_lists_the_bundled_ones(bbt):
    from backends.models import bundled_models

    assert [row["name"] for row in json.loads(bbt("ls", "models", "--json").stdout)] == list(bundled_models())


def test_ls_runs_lists_the_runs_of_a_folder(bbt, finished):
    assert json.loads(bbt("ls", "runs", "--json").stdout) == []
    ((row),) = json.loads(bbt("ls", "runs", "--runs", finished.parent, "--json").stdout)
    assert row["name"] == "mine"
    assert "20 queries" in row["about"]
    assert "mine" in bbt("ls", "runs", "--runs", finished.parent).stdout


def test_run_prints_a_table_or_json_and_makes_a_folder(bbt, model, tmp_path):
    path = written(tmp_path, model=model)
    table = bbt("run", path)
    assert table.returncode == 0, table.stderr
    for word in ("manual", "untuned", "tuned", "train queries", "dev queries", "selected:", "runs/mine"):
        assert word in table.stdout
    outcome = json.loads(bbt("run", path, "--set", "budget.queries=17", "--json").stdout)
    assert outcome["cost"]["train_queries"] == 15  # 10 screened, one generation of 5
    assert outcome["run"] == "runs/mine-2"
    assert (tmp_path / "runs" / "mine-2" / "prompt.safetensors").is_file()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bugdet": {}}, ["unknown key 'bugdet'", "'budget'"]),
        ({"task": {"name": "sst3"}}, ["unknown task 'sst3'", "'sst2'"]),
        ({"optimizer": {"name": "cmaes", "population_size": 4}}, ["unknown optimizer 'cmaes'", "'cma'"]),
        ({"model": {"backend": "locale"}}, ["unknown backend 'locale'", "'local'"]),
        ({"model": {"name": "nonesuch/model"}}, ["cannot load model 'nonesuch/model'"]),
        ({"prompt": {"init": "vocab"}}, ["'vocab'", "vocabulary"]),
        ({"data": {"source": "files", "train": "gone.csv", "test": "gone.csv"}}, ["no data file gone.csv"]),
        ({"budget": {"queries": "many"}}, ["budget.queries", "'many'"]),
    ],
)
def test_a_faulty_config_is_one_line_and_leaves_no_run(bbt, tmp_path, changes, words):
    assert_one_line(bbt("run", written(tmp_path, **changes)), *words)
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "gone.yaml"], ["no config file gone.yaml"]),
        (["run", "config.yaml", "--set", "budget.queries"], ["--set", "expected key=value"]),
        (["run", "config.yaml", "--set", "budget.queries=[1"], ["--set", "not YAML"]),
        (["run", "config.yaml", "--set", "budget.query=1"], ["Did you mean 'budget.queries'"]),
        (["resume", "gone"], ["gone is not a run folder"]),
        (["show", "gone"], ["gone is not a run folder"]),
        (["predict", "gone", "text"], ["no prompt at gone"]),
        (["eval", "gone", "--task", "sst2"], ["no prompt at gone"]),
        (["predict", "gone"], ["no texts"]),
    ],
)
def test_a_faulty_command_is_one_line(bbt, tmp_path, arguments, words):
    written(tmp_path)
    assert_one_line(bbt(*arguments), *words)


def test_predict_answers_arguments_and_lines_with_one_json_object_each(bbt, finished):
    texts = ["a good film", "it was bad", "œuvre"]
    by_argument = bbt("predict", finished, "--option", "precision=fp32", *texts)
    assert by_argument.returncode == 0, by_argument.stderr
    answers = [json.loads(line) for line in by_argument.stdout.splitlines()]
    assert [answer["text"] for answer in answers] == texts
    for answer in answers:
        assert set(answer["probabilities"]) == {"negative", "positive"}
        assert sum(answer["probabilities"].values()) == pytest.approx(1.0)
        assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)
    lines = f"{texts[0]}\n\n{json.dumps({'text': texts[1], 'id': 7})}\n{texts[2]}\n"
    piped = bbt("predict", finished / "prompt.safetensors", "--option", "precision=fp32", stdin=lines)
    first, blank, *rest = piped.stdout.splitlines()
    assert blank == ""
    piped_answers = [json.loads(line) for line in (first, *rest)]
    assert piped_answers[1].pop("id") == 7
    assert piped_answers == answers


@pytest.mark.parametrize(
    ("line", "words"), [('{"text": ', ["not JSON"]), ('{"txt": "a"}', ["line 1", "no column 'text'", "txt"])]
)
def test_a_faulty_line_of_standard_input_is_quoted(bbt, finished, line, words):
    assert_one_line(bbt("predict", finished, stdin=line + "\n"), *words)


def test_a_malformed_option_is_one_line(bbt, finished):
    assert_one_line(bbt("predict", finished, "x", "--option", "precision"), "--option 'precision'", "key=value")


def test_eval_gives_the_runs_own_test_numbers(bbt, finished):
    folder = RunFolder(finished)
    (result,) = folder.log.of("result")
    folder.close()
    said = bbt("eval", finished, "--task", "sst2", "--json")
    assert said.returncode == 0, said.stderr
    facts = json.loads(said.stdout)
    assert {key: value for key, value in facts.items() if key not in ("per_class", "confusion")} == {
        "task": "sst2",
        "examples": 872,
        **result["test"]["tuned"],
    }
    assert np.trace(np.array(facts["confusion"])[:, :2]) == round(872 * facts["accuracy"])


def test_eval_takes_own_rows_and_refuses_a_task_of_other_labels(bbt, finished, tmp_path):
    (tmp_path / "own.csv").write_text("text,label\na good film,1\nit was bad,0\n")
    said = bbt("eval", finished, "--task", "sst2", "--data", "own.csv")
    assert "(2 test rows)" in said.stdout
    assert "accuracy" in said.stdout
    assert_one_line(bbt("eval", finished, "--task", "agnews"), "2 label words", "4 labels")


def test_show_draws_the_convergence_and_prints_the_table(bbt, finished, tmp_path):
    said = json.loads(bbt("show", finished, "--plot", "plot.png", "--json").stdout)
    assert said["cost"]["train_queries"] == 20
    assert said["plot"] == "plot.png"
    assert (tmp_path / "plot.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    table = bbt("show", finished)
    assert "tuned" in table.stdout
    assert (finished / "convergence.png").is_file()


def test_the_table_of_a_run_is_printed_though_its_plot_cannot_be_drawn(bbt, finished, tmp_path):
    said = bbt("show", finished, "--plot", tmp_path / "gone" / "plot.png")
    assert said.returncode == 0
    assert "tuned" in said.stdout
    assert said.stderr.startswith("warning: no plot at")
    assert said.stderr.count("\n") == 1
    assert json.loads(bbt("show", finished, "--plot", tmp_path / "gone" / "plot.png", "--json").stdout)["plot"] is None


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_that_cannot_be_encoded_is_replaced(finished, tmp_path, encoding):
    folder = shutil.copytree(finished, tmp_path / "run")
    events = folder / "events.jsonl"
    events.write_text(events.read_text().replace('"prompt_text": null', '"prompt_text": "\\u4f60 \\ud83d"'))
    said = subprocess.run(
        [sys.executable, "-m", "bbt.cli", "show", folder, "--plot", tmp_path / "plot.png"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert said.returncode == 0, said.stderr
    assert b"tuned" in said.stdout
    assert b"Traceback" not in said.stderr


def test_a_backend_for_windows_that_is_not_installed_stands_in_no_run_s_way(finished, tmp_path):
    said = subprocess.run(
        [sys.executable, "-m", "bbt.cli", "show", finished, "--plot", tmp_path / "plot.png"],
        capture_output=True,
        text=True,
        env={**os.environ, "MPLBACKEND": "nonesuch"},
    )
    assert (said.returncode, said.stderr) == (0, "")
    assert (tmp_path / "plot.png").stat().st_size > 1000
    script = "from bbt.optimizers import Settings, make_optimizer; make_optimizer('cma', Settings(intrinsic_dim=3))"
    environment = {**os.environ, "MPLBACKEND": "nonesuch"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


def test_a_warning_is_one_line(bbt, monkeypatch):
    def warns():
        warnings.warn("two\nlines", stacklevel=2)
        logging.getLogger("bbt.room").warning("%d rows", 3)
        return []

    monkeypatch.setattr("bbt.cli.look._models", warns)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        said = bbt("ls", "models", "--json")
    assert said.stderr == "warning: two lines\nwarning: 3 rows\n"
    assert not logging.getLogger("bbt").handlers


@pytest.mark.parametrize("known", [False, True])
def test_ctrl_c_names_the_run_folder_only_where_there_is_one(known, tmp_path, capsys):
    with pytest.raises(SystemExit) as left, progress_bar() as bar:  # noqa: PT012
        if known:
            bar.opened(tmp_path)
        raise KeyboardInterrupt
    assert left.value.code == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        f"stopped; nothing is lost: bbt resume {tmp_path}" if known else "stopped before the run began"
    )
