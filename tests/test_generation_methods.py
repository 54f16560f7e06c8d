"""Gradients, demonstrations and instructions where the answer is a text: against PEFT, and that they learn."""

import json
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from test_generation import EXAMPLES, QUESTIONS, task, tree
from toy import shared_config
from transformers import AutoTokenizer
from typer.testing import CliRunner

from bbt.api import estimate, run, tune
from bbt.backend import Decoding
from bbt.baselines.peft_training import peft_imported
from bbt.baselines.training import Training
from bbt.build import make_experiment
from bbt.cli import app
from bbt.compare.plan import cells, load_plan
from bbt.config import load_config
from bbt.errors import ConfigError
from bbt.experiment.generators import SoftPromptGenerator
from bbt.methods import load_method, to_yaml
from bbt.methods.in_context import InContextGenerator
from bbt.predictor import Predictor
from bbt.runs.convergence import curve
from bbt.runs.log import EventLog
from bbt.scoring.judge import Verdict
from bbt.scoring.ledger import Ledger
from bbt.tasks import Example

pytestmark = pytest.mark.filterwarnings("ignore:the parts of the data overlap")
TRAININGS = ("prompt-tuning", "p-tuning", "prefix-tuning", "adapter", "lora", "bitfit", "model-tuning")
NO_PROMPT = np.zeros((1, 0, 32), np.float32)


@pytest.fixture
def setting(tmp_path, tiny_folder):
    """(method, its settings) -> a config on the questions."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))

    def make(method, name="gpt2", **settings):
        prompt = {"n_prompt_tokens": 3, "n_screened": 1, "instruction": settings.pop("instruction", None)}
        sections = {"prompt": prompt, "evaluation": {"rows": 4, "references": False}, "seed": settings.pop("seed", 0)}
        return shared_config(tree(tmp_path, tiny_folder(name), method={"name": method, **settings}, **sections))

    return make


@pytest.fixture
def last_wins(monkeypatch):
    """Dev prefers the last state: what training has done is what is saved."""
    monkeypatch.setattr(Verdict, "better_than", lambda self, other, by: True)


def train_loss(outcome, experiment):
    """The mean loss of the train rows' target tokens, without dropout."""
    return outcome.classifier.target_scores(experiment.split.train, Ledger()).row_losses.mean()


OF_BART = ("prompt-tuning", "prefix-tuning", "lora", "model-tuning")


@pytest.mark.parametrize(("name", "method"), [*(("gpt2", m) for m in TRAININGS), *(("bart", m) for m in OF_BART)])
def test_training_lowers_the_loss_of_the_targets(name, method, setting, tmp_path, last_wins):
    rate = 5e-2 if method in ("prompt-tuning", "prefix-tuning") else 5e-3
    settings = setting(method, name, steps=15, batch_size=2, learning_rate=rate)
    outcome = run(settings, tmp_path / "runs")
    experiment = make_experiment(settings, Predictor(outcome.folder).backend)
    manual = (
        experiment.generator(experiment.no_prompt).target_scores(experiment.split.train, Ledger()).row_losses.mean()
    )
    assert train_loss(outcome, experiment) < manual - 0.1
    assert outcome.result["cost"]["train_queries"] == 15
    assert set(outcome.result["test"]["tuned"]) == {"token_f1", "bleu"}
    again = Predictor(outcome.folder)
    assert again.generates
    ours, loaded = (one.target_scores(EXAMPLES, Ledger()) for one in (outcome.classifier, again.classifier))
    np.testing.assert_allclose(loaded.log_likelihoods, ours.log_likelihoods, atol=1e-3)
    assert again.classifier.texts(EXAMPLES, Ledger()) == outcome.classifier.texts(EXAMPLES, Ledger())


@pytest.mark.parametrize("name", ["gpt2", "llama", "bart"])
def test_likelihoods_with_gradients_are_those_of_the_forward_pass(name, tiny_backend, random_prompts):
    backend, prompts = tiny_backend(name), random_prompts(1, 4)
    rows = task().rows(EXAMPLES, 4)
    expected = backend.target_log_likelihoods(prompts, backend.encode_pairs(rows))[0]
    model, prompt = backend.trainable(), torch.from_numpy(prompts[0]).requires_grad_()
    pairs = model.encode_pairs(rows)
    found = model.target_log_likelihoods(pairs, range(8), prompt)
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-4)
    (gradient,) = torch.autograd.grad(found.sum(), prompt)
    step = 1e-2 * gradient / gradient.norm()
    with torch.no_grad():
        up, down = (model.target_log_likelihoods(pairs, range(8), prompt + sign * step).sum() for sign in (1, -1))
    assert float(up - down) / 2e-2 == pytest.approx(float(gradient.norm()), rel=0.02)


def plain_texts(backend, model, contexts, n_new):
    """The texts that a plain call of `generate`, one row at a time, gives, up to the model's end of sequence."""
    texts, end = [], backend.model.generation_config.eos_token_id
    for row in contexts.rows:
        ids = torch.tensor([row.ids])
        how = {"max_new_tokens": n_new, "do_sample": False, "pad_token_id": 0}
        if row.decoder:
            how["decoder_input_ids"] = torch.tensor([row.decoder])
        new = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **how)[0]
        if row.decoder:
            tokenizer = AutoTokenizer.from_pretrained(backend.info.name)
            texts.append(tokenizer.decode(new[len(row.decoder) :], skip_special_tokens=True).strip())
        else:
            new = new[ids.shape[1] :].tolist()
            texts.append(backend.prompt_text(new[: new.index(end)] if end in new else new).strip())
    return texts


@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")  # PEFT's own, of its own call
@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart"])
@pytest.mark.parametrize("method", ["prefix-tuning", "lora"])
def test_rows_of_several_lengths_are_gone_on_from_as_peft_does(name, method, tiny_backend, setting):
    backend = tiny_backend(name)
    model, training = backend.trainable(), load_method(setting(method))
    with peft_imported():
        from peft import get_peft_model

        peft_model = get_peft_model(model.model, training.peft_config(model.model)).eval()
    torch.manual_seed(0)
    for weight in peft_model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.5)
    training.attach(model, peft_model)
    decoding = Decoding(max_new_tokens=6, stop=())
    contexts = model.encode_contexts(task().rows(EXAMPLES, 0), 6)
    found = model.generate(contexts, decoding)
    with peft_imported():
        assert found == plain_texts(backend, peft_model, contexts, 6)
    plain = backend.generate(NO_PROMPT, backend.encode_contexts(task().rows(EXAMPLES, 0), 6), decoding)
    assert found != plain
    pairs = model.encode_pairs(task().rows(EXAMPLES, 0))
    for i, pair in enumerate(pairs.pairs[:3]):
        ids, begun = torch.tensor([[*pair.context.ids, *pair.target]]), pair.context.ids
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if pair.context.decoder:
            begun, read = pair.context.decoder, torch.tensor([pair.context.ids])
            ids = torch.tensor([[*begun, *pair.target]])
            given = {"input_ids": read, "attention_mask": torch.ones_like(read), "decoder_input_ids": ids}
        with torch.no_grad(), peft_imported():
            log_probs = peft_model(**given).logits[0].log_softmax(-1)
        places = range(len(begun) - 1, ids.shape[1] - 1)
        expected = sum(float(log_probs[place, token]) for place, token in zip(places, pair.target, strict=True))
        assert model.target_scores(pairs)[i] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("variant", ["sequential", "multi-head-parallel"])
def test_adapters_are_there_when_text_is_written(variant, tiny_backend, setting):
    """What is written token by token with kept keys and values is what a plain forward of all tokens says."""
    backend, method = tiny_backend("gpt2"), load_method(setting("adapter", variant=variant, bottleneck=4))
    model = backend.trainable()
    method.thaw(model.model)
    torch.manual_seed(0)
    for name, weight in model.model.named_parameters():
        if "adapter" in name:
            torch.nn.init.normal_(weight)
    decoding = Decoding(max_new_tokens=5, stop=())
    contexts = model.encode_contexts(task().rows(EXAMPLES[:3], 0), 5)
    found = model.generate(contexts, decoding)
    for row, text in zip(contexts.rows, found, strict=True):
        ids = list(row.ids)
        for _ in range(5):
            with torch.no_grad():
                ids.append(int(model.model.eval()(torch.tensor([ids])).logits[0, -1].argmax()))
        assert backend.prompt_text(ids[len(row.ids) :]).strip() == text
    assert found != backend.generate(NO_PROMPT, contexts, decoding)


def test_accumulated_batches_of_unequal_targets_are_one_large_batch(setting, last_wins, tiny_backend):
    found = []
    for size, n in ((2, 1), (1, 2)):
        parts = {"batch_size": size, "gradient_accumulation": n}
        own = setting("prompt-tuning", seed=1, steps=2, learning_rate=0.1, **parts)
        found.append(tune(own).classifier.prompt.embeddings)
    np.testing.assert_allclose(*found, atol=1e-4)
    rows = task().rows(make_experiment(own, tiny_backend("gpt2")).split.train, 0)
    assert len({*tiny_backend("gpt2").encode_pairs(rows).n_target_tokens}) == 2


def test_the_learning_rate_rises_and_falls_as_its_settings_say(setting):
    falling = load_method(setting("lora", steps=10, warmup_steps=2, schedule="linear"))
    assert isinstance(falling, Training)
    assert [round(falling.rate(step), 3) for step in range(11)] == [
        *(0.333, 0.667),
        *(1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0),
    ]
    assert {load_method(setting("lora")).rate(step) for step in range(5)} == {1.0}


def test_the_losses_of_a_training_are_drawn(setting, tmp_path):
    folder = run(setting("prompt-tuning", steps=5, dev_every=2, batch_size=1), tmp_path / "runs").folder
    events = EventLog(folder / "events.jsonl").of("steps")
    assert [len(event["losses"]) for event in events] == [2, 2, 1]
    queries, losses, best = curve(events)
    assert queries == [0.5, 1, 1.5, 2, 2]  # two train rows, a row a step
    assert best == np.minimum.accumulate(losses).tolist()


def test_demonstrations_stand_before_the_row_as_the_template_has_them(setting, tmp_path):
    outcome = run(setting("in-context", n_orders=2, n_demonstrations=1), tmp_path / "runs")
    generator = outcome.classifier
    assert isinstance(generator, InContextGenerator)
    (shown,) = generator.task.demonstrations
    (row,) = generator.task.rows(EXAMPLES[:1], 0)
    solved = f"{shown.text}\nQuestion : {shown.text_pair}\nAnswer : {shown.targets[0]}\n"
    asked = f"{EXAMPLES[0].text}\nQuestion : who is it ?\nAnswer : "
    assert "".join(segment.text for segment in row[:-1]) == solved + asked
    again = Predictor(outcome.folder)
    assert again.classifier.task.demonstrations == generator.task.demonstrations
    assert again.classifier.texts(EXAMPLES, Ledger()) == generator.texts(EXAMPLES, Ledger())
    assert outcome.result["cost"]["dev_queries"] == 2


def test_demonstrations_for_which_there_is_no_room_are_left_out(setting, caplog):
    outcome = tune(setting("in-context", n_orders=1))
    assert len(outcome.classifier.task.demonstrations) == 2
    assert "1.0 of 2 demonstrations fit" in caplog.text
    assert outcome.result["cost"]["truncated"] == 0


def test_an_instruction_is_its_words_in_the_template(setting, tmp_path):
    own = setting("instruction", instruction="Answer the question .")
    outcome = run(own, tmp_path / "runs")
    assert isinstance(outcome.classifier, SoftPromptGenerator)
    assert Predictor(outcome.folder).task.template.source == (
        "Answer the question . {source}\nQuestion : {source_pair}\nAnswer : {target}"
    )
    assert outcome.result["cost"]["train_queries"] == 0
    for words, message in ((None, "needs prompt.instruction"), ("a {text}", "no braces")):
        with pytest.raises(ConfigError, match=message):
            tune(setting("instruction", instruction=words))


@pytest.mark.parametrize("loss", [None, "negative_metric"])
@pytest.mark.parametrize("method", ["black-box", "manual"])
def test_the_estimate_is_what_the_run_then_costs(method, loss, setting, tmp_path):
    """It is all but the tokens of the texts, which may end before the six that are counted for each."""
    also = {"others": str(tmp_path / "rows.jsonl")}
    model = setting(method).model.name
    changes = {"selection": {"baselines": False, "n_best": 1}, "objective": {"loss": loss}}
    changes["evaluation"] = {"rows": 4, "references": False, "also_test": also}
    tree_of = tree(tmp_path, model, method={"name": method}, **changes)
    settings = shared_config({**tree_of, "price": {"up": 2.0}})
    guess, result = estimate(settings), tune(settings).result
    cost = result["cost"]
    assert (guess.train_queries, guess.dev_queries) == (cost["train_queries"], cost["dev_queries"])
    assert guess.examples == cost["examples"] + 2 * 4 + 2 * 4  # on test rows and on the others, scored and written
    assert guess.price == pytest.approx(result["price"]["search"] + result["price"]["test"])
    judged, train = 2 * guess.dev_queries + 8, 2 * guess.train_queries
    assert guess.tokens_down == judged * (1 + 6) + train * (6 if loss else 1)


def test_other_rows_are_tested_too(setting, tmp_path):
    """Out of domain, as in Lester et al. 2021: the same template and metrics on another file."""
    others = [{**row, "said": ["nobody"]} for row in QUESTIONS]
    (tmp_path / "others.jsonl").write_text("".join(json.dumps(row) + "\n" for row in others))
    also = {"strangers": str(tmp_path / "others.jsonl")}
    own = setting("prompt-tuning", steps=1)
    changed = own.model_copy(update={"evaluation": own.evaluation.model_copy(update={"rows": None, "also_test": also})})
    outcome = tune(changed)
    result, generator = outcome.result, outcome.classifier
    examples = [Example(row["story"], 0, row["asks"], tuple(row["said"])) for row in others]
    texts = generator.texts(examples, Ledger())
    found = result["also_test"]["strangers"]
    assert found["examples"] == 8
    assert found["token_f1"] == task(metrics=("token_f1",)).text_metric(texts, examples)
    assert found["perplexity"] == pytest.approx(generator.target_scores(examples, Ledger()).perplexity)
    assert found["perplexity"] != pytest.approx(result["perplexity"]["tuned"])


def test_texts_that_are_mostly_empty_are_told_of_and_all_are_pointed_to(setting, tmp_path, caplog):
    own = to_yaml(setting("manual")).replace("stop: null", f"stop: {json.dumps([*string.printable, chr(0xFFFD)])}")
    (tmp_path / "config.yaml").write_text(own)
    said = CliRunner().invoke(app, ["run", str(tmp_path / "config.yaml"), "--runs", str(tmp_path / "runs")])
    assert said.exit_code == 0, said.output
    assert "4 of 4 texts on the test rows are empty: the model ends them at once" in said.output + caplog.text
    (line,) = (line for line in said.output.splitlines() if line.startswith("texts on the test rows: "))
    assert all(not json.loads(text)["output"] for text in Path(line.split(": ")[1]).read_text().splitlines())


def test_the_ready_configs_and_plans_can_be_read():
    root = Path(__file__).parents[1]
    configs = {path.stem: load_config(path) for path in (root / "configs/generation").glob("*.yaml")}
    methods = {name: load_method(one) for name, one in configs.items()}
    for name in ("squad", "cnn-dailymail", "translation"):
        documents = methods[f"{name}-gpt2-documents"]
        asked = documents.prompt.n_prompt_tokens, documents.learning_rate, documents.batch_size
        assert (*asked, documents.gradient_accumulation) == (20, 1e-4, 6, 4)
    for plan, n_methods in (("generation", 10), ("generation-smollm2", 12)):
        assert len(cells(load_plan(root / f"examples/plans/{plan}.yaml"))) == 4 * n_methods * 5


def test_the_loss_curve_of_a_training_is_a_png(setting, tmp_path):
    folder = run(setting("prompt-tuning", steps=3), tmp_path / "runs").folder
    said = CliRunner().invoke(app, ["show", str(folder), "--plot", str(tmp_path / "curve.png")])
    assert said.exit_code == 0
    assert (tmp_path / "curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
