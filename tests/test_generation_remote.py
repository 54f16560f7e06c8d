"""Runs whose answer is a text, on models behind servers, through the command line: run, resume, predict, eval."""

import json
import sys
from contextlib import ExitStack

import pytest
from serving import serving

from bbt.cli import main

TEMPLATE = "{prompt} {source}\nQuestion : {source_pair}\nAnswer : {target}"
QUESTIONS = [
    {"story": f"a story about {who}", "asks": "who is it ?", "said": [who, f"a {who}"]}
    for who in ("friends", "a film", "the plot", "Sports", "News", "the World", "two friends", "Business")
]
SEARCH = {
    "prompt": {"n_prompt_tokens": 3, "intrinsic_dim": 8, "n_screened": 2},
    "optimizer": {"population_size": 4, "name": "cma"},
    "budget": {"queries": 14, "dev_every": 8},
    "selection": {"baselines": False},
}

# The same rows train and test here.
pytestmark = pytest.mark.filterwarnings("ignore:the parts of the data overlap")


@pytest.fixture
def bbt(capsys, monkeypatch):
    """Arguments -> exit code, output and errors of the command."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["bbt", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return left.value.code or 0, said.out, said.err

    return call


@pytest.fixture
def written(tmp_path):
    """Model and further sections -> path of a config whose rows lie beside it."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))

    def write(name, model, task=None, **sections):
        columns = {"source": "story", "source_pair": "asks", "target": "said"}
        tree = {
            "name": name,
            "task": {"name": "asked", "template": TEMPLATE, "decoding": {"max_new_tokens": 5}, **(task or {})},
            "data": {"source": "files", "k": 2, "train": str(rows), "test": str(rows), "columns": columns},
            "model": model,
            **sections,
        }
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(tree))
        return path

    return write


@pytest.fixture
def model(tiny_folder, tiny_backend, serve):
    """Kind -> the section of a config for a tiny model behind a server of this kind."""
    with ExitStack() as stack:

        def of(kind, name="gpt2"):
            folder = str(tiny_folder(name))
            if kind == "local":
                return {"name": folder, "options": {"precision": "fp32", "device": "cpu"}}
            if kind == "text-api":
                peer = serve(max_length=300)
                return {"name": "peer", "backend": kind, "options": {"url": peer.url, "vocabulary": folder}}
            if kind == "vllm":
                return {"name": folder, "backend": kind, "options": {"url": serve(max_length=65).url}}
            urls = [stack.enter_context(serving(tiny_backend(name))) for _ in range(1 + (kind == "pool"))]
            options = {"url": urls[0]} if kind == "http" else {"endpoints": [{"url": url} for url in urls]}
            return {"name": folder, "backend": kind, "options": options}

        yield of


def result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize(
    ("kind", "of"), [("http", "gpt2"), ("pool", "gpt2"), ("vllm", "gpt2"), ("http", "t5"), ("pool", "bart")]
)
def test_a_search_through_a_server_is_the_local_one(kind, of, model, written, bbt, tmp_path):
    runs = tmp_path / "runs"
    for name in ("local", kind):
        assert bbt("run", written(name, model(name, of), **SEARCH), "--runs", runs)[0] == 0
    ours, theirs = result(runs / "local"), result(runs / kind)
    assert theirs["test"] == ours["test"]
    assert theirs["perplexity"] == pytest.approx(ours["perplexity"], rel=1e-4)
    assert theirs["cost"]["bytes_up"] > 0 < theirs["cost"]["tokens_down"]
    assert theirs["cost"]["tokens_up"] == ours["cost"]["tokens_up"]
    if kind != "vllm":  # which counts the tokens that it made, and we those of the text that came of them
        assert theirs["cost"]["tokens_down"] == ours["cost"]["tokens_down"]
    outputs = (runs / kind / "outputs.jsonl").read_text()
    assert outputs == (runs / "local" / "outputs.jsonl").read_text()
    code, said, _ = bbt("predict", runs / kind, "--file", tmp_path / "rows.jsonl")
    assert code == 0
    answered = [json.loads(line)["output"] for line in said.splitlines()]
    assert answered == [json.loads(line)["output"] for line in outputs.splitlines()]
    code, said, _ = bbt("eval", runs / kind, "--json")
    assert json.loads(said)["token_f1"] == pytest.approx(theirs["test"]["tuned"]["token_f1"])
    assert json.loads(said)["perplexity"] == pytest.approx(theirs["perplexity"]["tuned"], rel=1e-4)


def test_a_search_through_a_server_goes_on_where_it_stopped(model, written, bbt, tmp_path):
    runs, its = tmp_path / "runs", model("http")
    short = written("short", its, **{**SEARCH, "budget": {"queries": 10, "dev_every": 4}})
    long = written("long", its, **{**SEARCH, "budget": {"queries": 18, "dev_every": 4}})
    assert bbt("run", short, "--runs", runs)[0] == bbt("run", long, "--runs", runs)[0] == 0
    assert bbt("resume", runs / "short", "--budget", "18")[0] == 0
    extended, whole = result(runs / "short"), result(runs / "long")
    for key in ("test", "perplexity", "selected"):
        assert extended[key] == whole[key]


def test_a_search_by_the_metric_itself_goes_through_a_server(model, written, bbt, tmp_path):
    runs = tmp_path / "runs"
    metric = {**SEARCH, "objective": {"loss": "negative_metric"}}
    for name in ("local", "http"):
        assert bbt("run", written(name, model(name), **metric), "--runs", runs)[0] == 0
    assert result(runs / "http")["test"] == result(runs / "local")["test"]


def test_labels_of_several_tokens_are_scored_through_a_server(model, bbt, tmp_path):
    runs, rows = tmp_path / "runs", tmp_path / "labelled.jsonl"
    rows.write_text(
        "".join(json.dumps({"text": f"{row['story']} {i}", "label": i % 2}) + "\n" for i, row in enumerate(QUESTIONS))
    )
    task = {
        "template": "{prompt} {text} . It was {mask}",
        "label_words": ["bad film", "great"],
        "scored_by": "likelihood",
    }
    data = {"source": "files", "k": 2, "train": str(rows), "test": str(rows)}
    for name in ("local", "http"):
        tree = {"name": name, "task": {"name": "own", **task}, "data": data, "model": model(name), **SEARCH}
        (tmp_path / f"{name}.json").write_text(json.dumps(tree))
        assert bbt("run", tmp_path / f"{name}.json", "--runs", runs)[0] == 0
    ours, theirs = result(runs / "local"), result(runs / "http")
    assert theirs["test"] == ours["test"]
    n_queries = theirs["cost"]["train_queries"] + theirs["cost"]["dev_queries"]
    assert theirs["cost"]["bytes_up"] < n_queries * 3 * 32 * 4 + 20_000  # z travelled, and a few prompts


def test_an_api_of_text_alone_answers_the_manual_prompt_without_perplexity(model, written, bbt, tmp_path):
    runs = tmp_path / "runs"
    for name in ("local", "text-api"):
        assert bbt("run", written(name, model(name), method={"name": "manual"}), "--runs", runs)[0] == 0
    ours, theirs = result(runs / "local"), result(runs / "text-api")
    assert theirs["test"] == ours["test"]
    assert (ours["perplexity"] != {}, theirs["perplexity"]) == (True, {})
    assert theirs["cost"]["tokens_up"] > 0 < theirs["cost"]["tokens_down"]
    code, said, _ = bbt("predict", runs / "text-api", "--file", tmp_path / "rows.jsonl")
    outputs = [json.loads(line)["output"] for line in (runs / "text-api" / "outputs.jsonl").read_text().splitlines()]
    assert (code, [json.loads(line)["output"] for line in said.splitlines()]) == (0, outputs)
    code, said, _ = bbt("eval", runs / "text-api", "--json")
    assert (code, "perplexity" in json.loads(said)) == (0, False)
    code, said, _ = bbt("eval", runs / "text-api")
    assert (code, "token_f1 %" in said, "perplexity" in said) == (0, True, False)


def test_what_an_api_cannot_do_is_one_line(model, written, bbt, tmp_path):
    runs = tmp_path / "runs"
    code, _, said = bbt("run", written("soft", model("text-api"), **SEARCH), "--runs", runs)
    assert (code, said.count("\n")) == (2, 1)
    assert "likelihoods of targets" in said or "soft prompt" in said
    beams = {"decoding": {"max_new_tokens": 5, "n_beams": 2}}
    for kind in ("text-api", "vllm"):
        path = written(kind, model(kind), beams, method={"name": "manual"})
        code, _, said = bbt("run", path, "--runs", runs)
        assert (code, said.count("\n"), "set task.decoding.n_beams to 1" in said) == (2, 1, True), said
