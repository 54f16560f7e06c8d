from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, classification_report, confusion_matrix, f1_score

from bbt.backend import Segment
from bbt.errors import ConfigError
from bbt.settings import TaskConfig
from bbt.tasks import METRICS, TASKS, Example, Task, TaskSpec, Template, task_spec
from bbt.tasks.builtin import Wording, builtin_task
from bbt.tasks.configured import make_task
from bbt.tasks.metrics import accuracy, confusion, load_metric, per_class
from bbt.tasks.task import labels_of
from bbt.testing import check_metric, check_task

GOLD = np.array([0, 0, 1, 1, 1, 0])
PREDICTED = np.array([0, 1, 1, 0, 1, 0])

# The reference's tables of templates and label words, with our slots in place of P, S and M.
MASKED = {
    "sst2": ("{prompt} . {text} . It was {mask} .", "bad great"),
    "yelp": ("{prompt} . {text} . It was {mask} .", "bad great"),
    "agnews": ("{prompt} . {mask} News: {text}", "World Sports Business Tech"),
    "dbpedia": (
        "{prompt} [ Category: {mask} ] {text}",
        "Company Education Artist Athlete Office Transportation Building Natural Village Animal Plant Album Film "
        "Written",
    ),
    "mrpc": ("{prompt} . {text} ? {mask} , {text_pair}", "No Yes"),
    "rte": ("{prompt} . {text} ? {mask} , {text_pair}", "Yes No"),
    "snli": ("{prompt} . {text} ? {mask} , {text_pair}", "Yes Maybe No"),
}
CAUSAL = {
    "sst2": ("{prompt} . {text} . The sentiment is {mask}", "negative positive"),
    "yelp": ("{prompt} . {text} . It is {mask}", "negative positive"),
    "agnews": ("{prompt} . {text} The news above is about {mask}", "world sports business tech"),
    "dbpedia": (
        "{prompt} {text} The text above is about {mask}",
        "company education artist athlete office transportation building natural village animal plant album film "
        "written",
    ),
}


@pytest.mark.parametrize("name", MASKED)
def test_masked_wordings_are_the_references(name):
    task = builtin_task(name, "masked")
    assert (task.template.source, " ".join(task.label_words)) == MASKED[name]


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_wordings_are_the_references(name):
    task = builtin_task(name, "causal")
    assert (task.template.source, " ".join(task.label_words)) == CAUSAL[name]


def test_the_references_tasks_are_all_there_with_its_losses_and_metrics():
    assert set(TASKS) == {*MASKED, "trec"}
    assert {name for name, spec in TASKS.items() if spec.loss == "hinge"} == {"mrpc", "snli", "rte"}
    assert TASKS["mrpc"].metrics == ("f1", "accuracy")
    assert all(spec.metrics == ("accuracy",) for name, spec in TASKS.items() if name != "mrpc")


@pytest.mark.parametrize("kind", ["masked", "causal"])
@pytest.mark.parametrize("name", TASKS)
def test_every_built_in_wording_fits_its_data(name, kind):
    task, spec = builtin_task(name, kind), TASKS[name]
    assert task.template.takes_pair == spec.takes_pair == bool(spec.hub and spec.hub.columns.text_pair)
    assert kind == "masked" or task.template.source.endswith("{mask}")


@pytest.mark.parametrize(("model", "kind"), [("minilm-mlm", "masked"), ("gpt2-mini", "causal")])
def test_trec_s_label_words_are_one_token_each_for_the_bundled_models(model, kind):
    from transformers import AutoTokenizer

    from backends.models import bundled_models

    tokenizer = AutoTokenizer.from_pretrained(bundled_models()[model])
    words = builtin_task("trec", kind).label_words
    assert [len(tokenizer.encode(f" {word}", add_special_tokens=False)) for word in words] == [1] * 6


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown task 'sst-2'\. Did you mean 'sst2'\?"):
        task_spec("sst-2")
    with pytest.raises(ConfigError, match=r"unknown task 'agnew'\. Did you mean 'agnews'\?"):
        make_task(TaskConfig(name="agnew"), "masked")


def test_own_words_override_the_built_in_ones():
    task = make_task(TaskConfig(name="sst2", label_words=("awful", "fine"), metrics=("macro_f1",)), "masked")
    assert task.label_words == ("awful", "fine")
    assert task.template.source == MASKED["sst2"][0]
    assert (task.label_names, task.metrics) == (("negative", "positive"), ("macro_f1",))


def test_an_own_task_is_called_by_its_label_words_unless_named():
    config = TaskConfig(name="mine", template="{prompt} {text} {mask}", label_words=("a", "b"))
    assert make_task(config, "causal").label_names == ("a", "b")
    named = config.model_copy(update={"label_names": ("x", "y")})
    assert make_task(named, "causal").label_names == ("x", "y")


@pytest.mark.parametrize(
    ("words", "metrics", "message"),
    [
        (("a",), ("accuracy",), "1 label words"),
        (("a", "a"), ("accuracy",), "label words repeat"),
        (("a", "b"), ("accurracy",), "unknown metric 'accurracy'. Did you mean 'accuracy'?"),
    ],
)
def test_a_task_that_cannot_be_is_refused(words, metrics, message):
    with pytest.raises(ConfigError, match=message):
        Task("t", Template("{text} {mask}"), ("x", "y"), words, metrics)


def test_labels_of_one_name_are_refused():
    with pytest.raises(ConfigError, match=r"task t: label names repeat: \['x', 'x'\]"):
        Task("t", Template("{text} {mask}"), ("x", "x"), ("a", "b"))


def test_rows_and_labels_keep_the_order_of_the_examples():
    task = builtin_task("rte", "masked")
    examples = [Example("a", 1, "b"), Example("c", 0, "d")]
    rows = task.rows(examples, 3)
    assert [[s.text for s in row if s.kind == "text"] for row in rows] == [["a", "b"], ["c", "d"]]
    assert rows[0][0] == Segment("prompt", n_tokens=3)
    np.testing.assert_array_equal(labels_of(examples), [1, 0])


def test_metrics_are_scikit_learns():
    assert load_metric("accuracy")(GOLD, PREDICTED) == accuracy_score(GOLD, PREDICTED)
    assert load_metric("f1")(GOLD, PREDICTED) == pytest.approx(f1_score(GOLD, PREDICTED))
    assert load_metric("macro_f1")(GOLD, PREDICTED) == pytest.approx(f1_score(GOLD, PREDICTED, average="macro"))


def test_f1_is_of_class_one_alone():
    gold = np.array([1] * 279 + [0] * 129)  # MRPC's validation split
    assert load_metric("f1")(gold, np.ones_like(gold)) == pytest.approx(0.812, abs=5e-4)
    assert load_metric("f1")(gold, np.zeros_like(gold)) == 0.0
    assert load_metric("f1")(1 - GOLD, 1 - PREDICTED) == pytest.approx(f1_score(GOLD, PREDICTED, pos_label=0))


def test_the_first_metric_selects_and_all_are_reported():
    task = builtin_task("mrpc", "masked")
    assert task.metric(GOLD, PREDICTED) == load_metric("f1")(GOLD, PREDICTED)
    values = {name: load_metric(name)(GOLD, PREDICTED) for name in ("f1", "accuracy")}
    assert task.evaluate(GOLD, PREDICTED) == values


def test_macro_f1_takes_no_answer_for_wrong_and_never_for_a_class():
    undecided = np.array([-1, 0, 1, 1, -1, 0])
    expected = np.mean([f1_score(label == GOLD, undecided == label) for label in (0, 1)])
    assert load_metric("macro_f1")(GOLD, undecided) == pytest.approx(expected)
    assert load_metric("macro_f1")(GOLD, np.full_like(GOLD, -1)) == 0.0


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 3)), min_size=1))
def test_scores_by_class_and_confusion_are_scikit_learns(rows):
    gold, predictions = np.array(rows).T
    classes = per_class(gold, predictions, 4)
    report = classification_report(gold, predictions, labels=range(4), output_dict=True, zero_division=0)
    for label, ours in enumerate(classes):
        theirs = report[str(label)]
        assert (ours["precision"], ours["recall"]) == pytest.approx((theirs["precision"], theirs["recall"]))
        assert (ours["f1"], ours["rows"]) == pytest.approx((theirs["f1-score"], theirs["support"]))
    counts = confusion(gold, predictions, 4)
    np.testing.assert_array_equal(
        np.column_stack([counts[:, 4], counts[:, :4]]), confusion_matrix(gold, predictions, labels=range(-1, 4))[1:]
    )


@pytest.mark.parametrize("name", TASKS)
def test_every_task_keeps_the_contract(name):
    check_task(TASKS[name])


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_keeps_the_contract(name):
    check_metric(load_metric(name))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda labels, predictions: (labels == predictions).mean().astype(np.float32), "is a float32, expected a flo"),
        (lambda labels, predictions: 100.0 * accuracy(labels, predictions), "is 100.0, expected 0 to 1"),
        (lambda labels, predictions: 1.0 - accuracy(labels, predictions), "of right predictions is 0.0"),
        (lambda labels, predictions: accuracy(labels[:9], predictions[:9]), "depends on the order of the rows"),
        (
            lambda labels, predictions: (
                accuracy(labels[predictions >= 0], predictions[predictions >= 0]) if (predictions >= 0).any() else 0.0
            ),
            "is 1 where predictions are missing",
        ),
    ],
)
def test_a_fault_of_a_metric_is_found_and_told_in_a_sentence(fault, said):
    with pytest.raises(AssertionError, match=said):
        check_metric(fault)


def test_a_fault_of_a_task_is_found_and_told_in_a_sentence():
    wording = Wording("{prompt} {text} {mask}", ("x", "y"))
    spec = TaskSpec("t", ("a", "b"), wording, wording, None)
    check_task(spec)
    with pytest.raises(AssertionError, match=r"a causal LM's template goes on after \{mask\}"):
        check_task(replace(spec, causal=replace(wording, template="{prompt} {text} {mask} .")))
