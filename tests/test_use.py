"""`bbt eval` and `bbt predict` on a run of one's own task, and the `Predictor` beneath them."""

import csv
import gzip
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import classification_report, confusion_matrix

from bbt import api
from bbt.cli import main
from bbt.config import make_config, read_run_config
from bbt.errors import BackendError, ConfigError, DataError
from bbt.predictor import Predictor
from bbt.tasks.data import bundled_splits

TEMPLATE = "{prompt} . {text} . It was {mask} ."
WORDS = {"NEG": "bad", "POS": "great"}


@pytest.fixture(scope="module")
def rows():
    """Part -> rows of SST-2 as (label, text)."""
    split = bundled_splits("sst2", 4, 42, ("negative", "positive"))
    parts = {"train": split.train, "dev": split.dev, "test": split.test[:30]}
    return {name: [(list(WORDS)[row.label], row.text) for row in part] for name, part in parts.items()}


@pytest.fixture(scope="module")
def run(rows, tmp_path_factory):
    """A finished run of the manual prompt on an own task with own train, dev and test files."""
    folder = tmp_path_factory.mktemp("own")
    for name, part in rows.items():
        with (folder / f"{name}.csv").open("w", newline="") as handle:
            csv.writer(handle).writerows([("queue", "body"), *part])
    data = {name: str(folder / f"{name}.csv") for name in rows}
    config = {
        "task": {
            "name": "mine",
            "template": TEMPLATE,
            "label_words": ["bad", "great"],
            "label_names": ["down", "up"],
            "metrics": ["macro_f1", "accuracy"],
        },
        "data": {
            "source": "files", "k": "all", "labels": list(WORDS), "columns": {"text": "body", "label": "queue"}, **data
        },
        "method": {"name": "manual"},
        "model": {"options": {"device": "cpu", "precision": "fp32"}},
    }  # fmt: skip
    return api.run(make_config(config), folder / "runs").folder


@pytest.fixture(scope="module")
def predictor(run):
    return Predictor(run)


@pytest.fixture
def bbt(capsys, monkeypatch):
    """Arguments, standard input -> exit code, output, errors of the command."""

    def call(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "argv", ["bbt", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = None
        try:
            main()
        except SystemExit as done:
            code = done.code
        said = capsys.readouterr()
        return code or 0, said.out, said.err

    return call


def refused(said, *words):
    code, _, err = said
    assert code == 2, err
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def test_eval_knows_the_run_s_own_task(bbt, run, rows):
    code, out, err = bbt("eval", run, "--json")
    assert code == 0, err
    said, result = json.loads(out), json.loads((run / "result.json").read_text())
    assert (said["task"], said["examples"]) == ("mine", 30)
    assert {key: said[key] for key in ("macro_f1", "accuracy")} == pytest.approx(result["test"]["tuned"])


def test_eval_counts_classes_and_writes_predictions(bbt, run, rows, tmp_path):
    answers = tmp_path / "answers.jsonl"
    said = json.loads(bbt("eval", run, "--predictions", answers, "--json")[1])
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [(line["text"], line["gold"]) for line in lines] == [
        (text, {"NEG": "down", "POS": "up"}[label]) for label, text in rows["test"]
    ]
    gold, given = ([line[key] for line in lines] for key in ("gold", "label"))
    report = classification_report(gold, given, output_dict=True)
    for name in ("down", "up"):
        ours, theirs = said["per_class"][name], report[name]
        for key, their_key in (("precision",) * 2, ("recall",) * 2, ("f1", "f1-score"), ("rows", "support")):
            assert ours[key] == pytest.approx(theirs[their_key])
    np.testing.assert_array_equal(np.array(said["confusion"])[:, :2], confusion_matrix(gold, given))
    for line in lines:
        assert line["label"] == max(line["probabilities"], key=line["probabilities"].get)


def test_eval_s_tables_name_the_classes(bbt, run):
    out = bbt("eval", run)[1]
    for word in ("mine (30 test rows)", "macro_f1", "down", "up", "precision %", "recall %", "confusion"):
        assert word in out


def test_eval_reads_another_file_by_the_run_s_columns_and_labels(bbt, run, tmp_path):
    file = tmp_path / "more.CSV.gz"
    file.write_bytes(gzip.compress(b"id,queue,body\n7,POS,a good film\n8,NEG,it was bad\n9,POS,great\n"))
    said = json.loads(bbt("eval", run, "--data", file, "--json")[1])
    assert (said["task"], said["examples"], said["per_class"]["up"]["rows"]) == ("mine", 3, 2)


def test_eval_of_a_prompt_s_file_needs_rows(bbt, run, tmp_path):
    refused(bbt("eval", run / "prompt.safetensors"), "give --task, --data or the run folder")
    refused(bbt("eval", run, "--predictions", tmp_path / "gone" / "a.jsonl"), "no folder")
    file = tmp_path / "more.jsonl"
    file.write_text('{"text": "a good film", "label": 1}\n')
    said = json.loads(bbt("eval", run / "prompt.safetensors", "--data", file, "--json")[1])
    assert said["examples"] == 1


@pytest.mark.parametrize("command", ["eval", "predict"])
@pytest.mark.parametrize("option", ["model=", "model=gpt2-mini"])
def test_an_option_cannot_name_another_model(bbt, run, command, option):
    for path in (run, run / "prompt.safetensors"):
        refused(
            bbt(command, path, *["text"] * (command == "predict"), "--option", option), "option model=", "model.name"
        )


def test_a_config_s_options_cannot_name_a_model_either():
    with pytest.raises(ConfigError, match=r"option model='x' is none"):
        api.open_backend(make_config({"model": {"options": {"model": "x"}}}).model)


FILES = {
    "rows.csv": 'id,queue,body\n7,POS,"a good, ""fine"" film"\n\n8,NEG,it was bad\n',
    "rows.tsv": 'id\tqueue\tbody\n7\tPOS\ta good, "fine" film\n\n8\tNEG\tit was bad\n',
    "rows.jsonl": '{"id": "7", "queue": "POS", "body": "a good, \\"fine\\" film"}\n\n'
    '{"id": "8", "queue": "NEG", "body": "it was bad"}\n',
}


@pytest.mark.parametrize("name", FILES)
def test_predict_keeps_every_column_and_blank_line_of_a_file(bbt, run, predictor, tmp_path, name):
    (tmp_path / name).write_text(FILES[name])
    code, out, err = bbt("predict", run, "--file", tmp_path / name)
    assert code == 0, err
    first, blank, last = out.splitlines()
    assert blank == ""
    texts = ['a good, "fine" film', "it was bad"]
    expected = predictor.predict(texts)
    for line, text, row, answer in zip((first, last), texts, (("7", "POS"), ("8", "NEG")), expected, strict=True):
        said = json.loads(line)
        assert list(said) == ["id", "queue", "body", "label", "probabilities"]
        assert (said["id"], said["queue"], said["body"], said["label"]) == (*row, text, answer["label"])
        assert said["probabilities"] == pytest.approx(answer["probabilities"], abs=1e-5)


def test_a_column_called_label_is_kept_and_the_answer_gets_another_name(bbt, run, tmp_path):
    (tmp_path / "d.csv").write_text("text,label\na good film,1\n")
    (line,) = bbt("predict", run, "--file", tmp_path / "d.csv")[1].splitlines()
    said = json.loads(line)
    assert list(said) == ["text", "label", "predicted_label", "probabilities"]
    assert said["label"] == "1"


def test_what_came_before_a_faulty_row_is_answered(bbt, run, tmp_path):
    (tmp_path / "d.jsonl").write_text('{"body": "good"}\n' * 200 + '{"body": null}\n' + '{"body": "good"}\n')
    code, out, err = bbt("predict", run, "--file", tmp_path / "d.jsonl")
    assert (code, len(out.splitlines())) == (2, 200)
    assert "d.jsonl:201: this row has no value for 'body'" in err


def test_a_stream_is_answered_while_it_is_read(run, predictor, monkeypatch, capsys):
    from bbt.cli import use

    monkeypatch.setattr(use, "ROWS_AT_ONCE", 2)
    printed = []

    def stream():
        for i in range(6):
            printed.append(len(capsys.readouterr().out.splitlines()))
            yield f"row {i}", {"body": f"film {i}"}

    use._answer_all(predictor, stream())
    assert printed == [0, 0, 2, 0, 2, 0]


def test_standard_input_keeps_columns_and_blank_lines(bbt, run):
    lines = '\ufeffa good film\n\n{"text": "it was bad", "id": 7}\r\nœuvre\n'.encode()
    code, out, err = bbt("predict", run, stdin=lines)
    assert code == 0, err
    said = [json.loads(line) if line else None for line in out.splitlines()]
    assert [one and one["text"] for one in said] == ["a good film", None, "it was bad", "œuvre"]
    assert said[2]["id"] == 7


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"caf\xe9", ["standard input, line 2: 'text' is not UTF-8 text (byte 0xe9)"]),
        (b'{"text": "half \\ud83d"}', ["standard input, line 2", "half a character"]),
        (b'{"text": null}', ["standard input, line 2", "no value for"]),
        (b'{"text": 1, "text": 2}', ["standard input, line 2", "stands twice"]),
    ],
)
def test_a_faulty_line_of_standard_input_is_named(bbt, run, line, words):
    said = bbt("predict", run, stdin=b"good\n" + line + b"\n")
    refused(said, *words)
    assert len(said[1].splitlines()) == 1


def test_a_half_character_of_another_column_is_kept(bbt, run):
    (line,) = bbt("predict", run, stdin=b'{"text": "good", "name": "half \\ud83d"}\n')[1].splitlines()
    assert json.loads(line)["name"] == "half \ud83d"


def test_an_argument_that_is_not_utf8_is_named(bbt, run):
    refused(bbt("predict", run, "good", b"caf\xe9".decode("utf-8", "surrogateescape")), "text 2", "byte 0xe9")


def test_texts_and_a_file_at_once_are_refused(bbt, run, tmp_path):
    refused(bbt("predict", run, "text", "--file", tmp_path / "d.csv"), "not both")
    refused(bbt("predict", run, "--file", tmp_path / "gone.csv"), "no data file")
    refused(bbt("predict", run), "no texts")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a bare string", r"several texts, got one str: put it in a list"),
        (b"bytes", r"several texts, got one bytes"),
        (None, r"several texts, got one NoneType"),
        (["good", None], r"texts\[1\] is None, not text"),
        ([float("nan")], r"texts\[0\] is nan, not text"),
        (["good", "bad", b"caf\xe9"], r"texts\[2\] is bytes, not text: decode it"),
        (["half \ud83d"], r"texts\[0\] holds half a character \(\\ud83d"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(predictor, texts, message):
    with pytest.raises(DataError, match=message):
        predictor.predict(texts)


def test_second_texts_are_given_where_they_are_read_and_nowhere_else(predictor, run):
    with pytest.raises(DataError, match="reads one text a row"):
        predictor.predict(["a"], ["b"])
    assert predictor.predict(["a"], [""]) == predictor.predict(["a"])
    assert predictor.predict([]) == []
    pairs = Predictor(run)
    pairs.task = pairs.task.__class__(
        "pairs", pairs.task.template.__class__("{text} {mask} {text_pair}"), *2 * [("n", "y")]
    )
    with pytest.raises(DataError, match="reads two texts a row"):
        pairs.predict(["a"])
    with pytest.raises(DataError, match="2 texts, but 1 text_pairs"):
        pairs.predict(["a", "b"], ["c"])


class Fixed:
    """A classifier of known scores."""

    def __init__(self, scores):
        self.table = np.array(scores, np.float32)

    def scores(self, examples, ledger):
        return self.table[: len(examples)]


def test_predict_and_evaluate_agree_on_ties(run):
    from bbt.tasks import Example

    predictor = Predictor(run)
    predictor.classifier = Fixed([[1, 1], [0, 2], [3, 0]])
    said = predictor.predict(["a", "b", "c"])
    assert [one["label"] for one in said] == [None, "up", "down"]
    assert said[0]["probabilities"] == {"down": 0.5, "up": 0.5}
    examples = [Example("a", 0), Example("b", 1), Example("c", 0)]
    assert predictor.evaluate(predictor.task, examples) == {"accuracy": pytest.approx(2 / 3)}


def test_scores_that_are_no_numbers_are_no_answer(run):
    predictor = Predictor(run)
    predictor.classifier = Fixed([[1, 0], [np.nan, 0]])
    with pytest.raises(BackendError, match="scores of 1 of 2 texts are NaN, the first of 'b'"):
        predictor.predict(["a", "b"])


def test_a_run_folder_is_named_by_a_string_too(run, tmp_path):
    again = api.run(read_run_config(str(run)), str(tmp_path / "runs"))
    assert again.folder is not None
    assert api.resume(str(again.folder)).folder == again.folder
    assert Predictor(str(run)).predict(["a"]) == Predictor(Path(run)).predict(["a"])
