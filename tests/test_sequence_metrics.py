"""Metrics of generated text are their own libraries' figures, and SQuAD's are its official script's."""

import json
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from bbt.errors import ConfigError
from bbt.tasks.sequence_metrics import SEQUENCE_METRICS, load_sequence_metric, signatures

TEXTS = ["The cat sat on the mat.", "a dog", "Denver Broncos", "es regnet heute sehr stark"]
REFERENCES = [("A cat sat on a mat",), ("the dog!", "a wolf"), ("the Carolina Panthers",), ("Heute regnet es stark.",)]


def found(name, texts=TEXTS, references=REFERENCES):
    return load_sequence_metric(name)(texts, references)


def test_squad_figures_are_worked_out_by_hand():
    """Articles, punctuation and capitals do not count; the best reference does."""
    assert found("exact_match") == 2 / 4  # "cat sat on mat" and "dog"
    # The last: 4 of 5 words against 4 of 4.
    assert found("token_f1") == pytest.approx((1 + 1 + 0 + 2 * 4 / (5 + 4)) / 4)
    assert found("token_f1", ["cat cat cat"], [("a cat",)]) == pytest.approx(
        2 * 1 / (3 + 1)
    )  # a word as often as it is


def test_squad_figures_are_those_of_a_script_called_on_files(tmp_path):
    texts = [*TEXTS, "The—end of a-b, U.S.", "", "an the", "Beyoncé's  1,000 songs"]
    references = [*REFERENCES, ("—end ab US", "the end"), ("none",), ("a", "x"), ("Beyoncés 1000 songs", "songs")]
    questions = [
        {"id": str(i), "answers": [{"text": one, "answer_start": 0} for one in ones]}
        for i, ones in enumerate(references)
    ]
    dataset = {"version": "1.1", "data": [{"paragraphs": [{"context": "", "qas": questions}]}]}
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    (tmp_path / "predictions.json").write_text(json.dumps({str(i): text for i, text in enumerate(texts)}))
    script = Path(__file__).with_name("squad_counting.py")
    run = [sys.executable, str(script), str(tmp_path / "dataset.json"), str(tmp_path / "predictions.json")]
    said = json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    assert found("exact_match", texts, references) == pytest.approx(said["exact_match"] / 100)
    assert found("token_f1", texts, references) == pytest.approx(said["f1"] / 100)
    assert 0 < said["exact_match"] < said["f1"] < 100


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_sacrebleu_says_the_same_on_its_command_line(tmp_path, name):
    references = [ones[0] for ones in REFERENCES]
    (tmp_path / "texts").write_text("\n".join(TEXTS) + "\n")
    (tmp_path / "references").write_text("\n".join(references) + "\n")
    arguments = [str(tmp_path / "references"), "-i", str(tmp_path / "texts"), "-m", name, "-w", "6"]
    run = [sys.executable, "-m", "sacrebleu", *arguments, "-b"]
    said = float(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    assert found(name, TEXTS, [(one,) for one in references]) == pytest.approx(said / 100, abs=1e-8)


def test_several_references_of_different_number_count_each():
    assert found("bleu", ["it is a wolf here"], [("no", "it is a wolf here")]) == pytest.approx(1)
    two = [("it is a wolf here",), ("no such thing at all", "they are two dogs there")]
    assert found("bleu", ["it is a wolf here", "they are two dogs there"], two) == pytest.approx(1)


def test_signatures_are_sacrebleu_s():
    one, two = [("a",), ("b",)], [("a", "b"), ("c", "d")]
    assert set(signatures(["bleu", "token_f1", "chrf"], one)) == {"bleu", "chrf"}
    assert "|tok:13a|" in signatures(["bleu"], one)["bleu"]
    for metric in (BLEU(), CHRF()):
        for references in (one, two, [*one, *two]):
            streams = [[*ones] for ones in zip_longest(*references)]
            metric.corpus_score(["a"] * len(references), streams)
            name = type(metric).__name__.lower()
            assert signatures([name], references)[name] == str(metric.get_signature())
    assert signatures(["bleu"], []) == {}


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_rouge_score_s_mean(name):
    scorer = RougeScorer([name], use_stemmer=True)
    best = [
        max(scorer.score(one, text)[name].fmeasure for one in ones)
        for text, ones in zip(TEXTS, REFERENCES, strict=True)
    ]
    assert found(name) == pytest.approx(sum(best) / len(best))


@pytest.mark.parametrize("name", sorted(SEQUENCE_METRICS))
def test_texts_that_are_their_references_have_the_best_figure(name):
    texts = ["it is a wolf here", "they are two dogs there"]
    assert found(name, texts, [(text,) for text in texts]) == pytest.approx(1)
    assert found(name, ["", ""], [(text,) for text in texts]) == 0


@pytest.mark.parametrize(("name", "package"), [("bleu", "sacrebleu"), ("rougeL", "rouge-score")])
def test_a_missing_library_is_named_with_its_extra(monkeypatch, name, package):
    for module in ("sacrebleu.metrics.bleu", "rouge_score.rouge_scorer"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"needs the package {package}: pip install 'bbt-prompt\[generation\]'"):
        found(name)


def test_an_unknown_metric_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'bleu'"):
        load_sequence_metric("bleau")
