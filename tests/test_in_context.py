"""In-context learning: the model reads solved examples, whole ones only, as many as it has room for."""

import numpy as np
import pytest
from reference import normalised
from toy import shared_config

from bbt.api import run, tune
from bbt.backend import Segment
from bbt.methods.in_context import InContextClassifier, demonstrated
from bbt.runs.log import EventLog
from bbt.scoring.ledger import Ledger
from bbt.tasks import Example, Task, Template
from bbt.tasks.data import alternating
from bbt.testing import ToyBackend

TASK = Task("films", Template("{prompt} . {text} . It was {mask}"), ("no", "yes"), ("bad", "great"))
SHOWN = [Example("a film", 1), Example("the plot is bad", 0), Example("I liked it", 1)]
TEXT = Example("the acting is worse", 0)
NO_PROMPT = np.zeros((0, 32), np.float32)


def classifier(backend, shown=SHOWN, task=TASK) -> InContextClassifier:
    return demonstrated(backend, task, shown)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_the_model_reads_the_solved_examples(name, tiny_backend, reference):
    natural = (
        "a film . It was great\nthe plot is bad . It was bad\nI liked it . It was great\n"
        "the acting is worse . It was {mask}"
    )
    scores = classifier(tiny_backend(name)).scores([TEXT], Ledger())
    plain, words = reference(name), [word if name == "bert" else f" {word}" for word in TASK.label_words]
    expected = plain.log_probs(plain.ids(natural), NO_PROMPT, words)
    np.testing.assert_allclose(normalised(scores)[0], expected, atol=1e-4)


def test_a_pair_and_a_mask_in_the_middle(tiny_backend, reference):
    task = Task("pairs", Template("{prompt} . {text} ? {mask} , {text_pair}"), ("n", "y"), ("no", "yes"))
    shown = [Example("a film", 1, "a story")]
    scores = classifier(tiny_backend("bert"), shown, task).scores([Example("it", 0, "the plot")], Ledger())
    plain = reference("bert")
    ids = plain.ids("a film ? yes , a story\nit ? {mask} , the plot")
    np.testing.assert_allclose(normalised(scores)[0], plain.log_probs(ids, NO_PROMPT, ("no", "yes")), atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "llama"])
def test_only_whole_demonstrations_are_left_out_and_no_text_is_cut(name, tiny_backend):
    backend, ledger = tiny_backend(name), Ledger()
    examples = [Example(" ".join(["film"] * n), n % 2) for n in (1, 5, 10, 15, 400)]
    many = demonstrated(backend, TASK, SHOWN * 10)
    rows = many.task.rows(examples, 0)
    shown = [row[0].text.count("\n") if row[0].kind == "literal" and "\n" in row[0].text else 0 for row in rows]
    assert shown == sorted(shown, reverse=True)
    assert shown[0] > shown[3] > 0 == shown[4]
    assert many.task.n_left_out(examples) == 5 * 30 - sum(shown)
    many.scores(examples, ledger)
    assert ledger.truncated == 1  # the text that is longer than the model by itself, as under every method
    for example, n in zip(examples[:4], shown, strict=False):
        (plain,) = TASK.rows([example], 0)
        lines = "".join(f"{row.text} . It was {TASK.label_words[row.label]}\n" for row in (SHOWN * 10)[: n + 1])
        assert backend.encode([(Segment("text", lines), *plain)], TASK.label_words).n_truncated  # no room for one more
        fitting = lines[: lines[:-1].rindex("\n") + 1]
        assert not backend.encode([(Segment("text", fitting), *plain)], TASK.label_words).n_truncated


def test_the_classes_take_turns():
    examples = [Example(str(i), i % 3) for i in range(12)]
    for seed in range(5):
        order = alternating(examples, seed)
        assert sorted(order, key=lambda e: int(e.text)) == examples
        assert all({e.label for e in order[i : i + 3]} == {0, 1, 2} for i in range(0, 12, 3))
    assert alternating(examples, 0) != alternating(examples, 1)


def test_dev_picks_the_order_and_what_is_left_out_is_said(tiny_folder, tmp_path, caplog):
    config = {
        "calibration": "none",
        "data": {"k": 8},
        "method": {"name": "in-context", "n_orders": 4},
        "model": {"name": str(tiny_folder("bert")), "options": {"precision": "fp32", "device": "cpu"}},
        "evaluation": {"rows": 20},
    }
    outcome = run(shared_config(config), tmp_path)
    log = EventLog(outcome.folder / "events.jsonl")
    losses = [event["losses"][0] for event in log.of("dev")]
    assert len(set(losses)) > 2
    assert outcome.result["selected"]["loss"] == min(losses)
    assert outcome.result["selected"]["who"] == f"order {int(np.argmin(losses)) + 1}"
    assert (outcome.result["cost"]["train_queries"], outcome.result["cost"]["dev_queries"]) == (0, 4)
    (said,) = log.of("demonstrations")
    assert said["given"] == 16 > said["left_out_per_dev_row"] > 0
    assert "of 16 demonstrations fit" in caplog.text


def test_fewer_demonstrations_can_be_asked_for():
    outcome = tune({"method": {"name": "in-context", "n_demonstrations": 3, "n_orders": 1}}, ToyBackend())
    assert len(outcome.classifier.inner.task.demonstrations) == 3
