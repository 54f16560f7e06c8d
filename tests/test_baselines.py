"""Methods with gradients: against PEFT, and that they learn what they say they learn."""

import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tiny_models import MAX_LENGTH
from toy import shared_config

from bbt.api import run, tune
from bbt.baselines.adapter import Adapter
from bbt.build import make_experiment
from bbt.errors import BackendError, RunError
from bbt.methods import load_method
from bbt.predictor import Predictor
from bbt.prompts.soft import SoftPrompt
from bbt.runs.observer import Observer
from bbt.scoring.judge import Verdict
from bbt.scoring.ledger import Ledger
from bbt.scoring.losses import cross_entropy
from bbt.tasks import Example
from bbt.tasks.task import labels_of
from bbt.testing import ToyBackend

TRAININGS = ("prompt-tuning", "p-tuning", "prefix-tuning", "adapter", "lora", "bitfit", "model-tuning")
GRADIENT_METHODS = (*TRAININGS, "auto-prompt")
TEXTS = ["a film so bad that it was great", "the plot is worse", "I liked it ; you did not"]
WORDS = ("bad", "great")
WORD_EMBEDDINGS = "bert.embeddings.word_embeddings.weight"
TEMPLATE = "{prompt} . {text} . It was {mask}"


@pytest.fixture
def setting(tiny_folder):
    """(architecture, method, its settings) -> a config on eight rows."""

    def make(name, method, precision="fp32", template=TEMPLATE, init="vocabulary", n_screened=1, **settings):
        task = {"name": "sst2", "template": template, "label_words": WORDS}
        return shared_config(
            {
                "task": {**task, "label_names": ["negative", "positive"]},
                "data": {"k": 4},
                "model": {"name": str(tiny_folder(name)), "options": {"precision": precision, "device": "cpu"}},
                "method": {"name": method, **({} if method == "auto-prompt" else {"batch_size": 8}), **settings},
                "prompt": {"n_prompt_tokens": 4, "n_screened": n_screened, "init": init},
                "evaluation": {"rows": 10, "references": False},
            }
        )

    return make


@pytest.fixture
def last_wins(monkeypatch):
    """Dev prefers the last state: what training has done is what is saved."""
    monkeypatch.setattr(Verdict, "better_than", lambda self, other, by: True)


class Losses(Observer):
    def __init__(self):
        self.losses = []

    def progressed(self, progress):
        self.losses.append(progress.train_loss)


BEFORE_AND_AFTER = [
    *((name, method) for name in ("bert", "roberta", "gpt2") for method in TRAININGS),
    *(("bart", method) for method in ("prompt-tuning", "lora", "model-tuning")),
]


@pytest.mark.parametrize(("name", "method"), BEFORE_AND_AFTER)
def test_training_lowers_the_loss(name, method, setting, last_wins):
    rate = 5e-2 if method in ("prompt-tuning", "prefix-tuning") else 5e-3
    start, end = (tune(setting(name, method, steps=n, learning_rate=r)) for n, r in ((1, 1e-12), (20, rate)))
    assert train_loss(end) < train_loss(start) - 0.05
    assert end.result["cost"]["train_queries"] == 20


def test_a_prefix_of_a_decoder_lowers_the_loss(setting, last_wins):
    """It moves the states of the one token that the decoder is given: that takes more steps. (A random T5 has so little
    to say there that the sum's order, by the number of threads, decides where its training goes.)"""
    start, end = (tune(setting("bart", "prefix-tuning", steps=n, learning_rate=r)) for n, r in ((1, 1e-12), (60, 0.1)))
    assert train_loss(end) < train_loss(start) - 0.05


def train_loss(outcome):
    """Cross-entropy on the rows that were trained on, without dropout."""
    split, ledger = make_experiment(outcome.config, ToyBackend()).split, Ledger()
    return cross_entropy(outcome.classifier.scores(split.train, ledger)[None], labels_of(split.train))[0]


@pytest.mark.parametrize(("name", "method"), [*(("bert", m) for m in GRADIENT_METHODS), ("gpt2", "prefix-tuning")])
def test_half_precision_backends_train_too(name, method, setting):
    assert np.isfinite(tune(setting(name, method, "bf16", steps=1)).result["selected"]["loss"])


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_what_is_loaded_scores_as_what_was_trained(method, setting, tmp_path, last_wins):
    rate = {} if method == "auto-prompt" else {"learning_rate": 0.1}
    outcome = run(setting("bert", method, steps=2, **rate), tmp_path)
    examples = [Example(text, 0) for text in TEXTS]
    trained, loaded = (c.scores(examples, Ledger()) for c in (outcome.classifier, Predictor(outcome.folder).classifier))
    np.testing.assert_allclose(loaded, trained, atol=1e-5)
    manual = make_experiment(outcome.config, Predictor(outcome.folder).backend).manual.scores(examples, Ledger())
    assert np.abs(trained - manual).max() > 0.01, "it is the manual prompt"


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_a_forward_only_backend_is_refused(method):
    with pytest.raises(BackendError, match=f"^{method} needs gradients, which ToyBackend does not offer; .*black-box"):
        tune(shared_config({"method": {"name": method}}), ToyBackend())


def test_architectures_that_peft_cannot_do_are_refused(setting):
    with pytest.raises(BackendError, match="DistilBertForMaskedLM takes no keys and values"):
        tune(setting("distilbert", "prefix-tuning"))
    with pytest.raises(BackendError, match="PEFT cannot do this with DistilBertForMaskedLM: Please specify `target_"):
        tune(setting("distilbert", "lora"))
    tune(setting("distilbert", "lora", steps=1, target_modules=["q_lin", "v_lin"]))


@pytest.mark.parametrize("method", ["lora", "p-tuning"])
def test_without_peft_the_extra_is_named(method, setting, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(BackendError, match=r"needs PEFT, pip install 'bbt-prompt\[baselines\]'"):
        tune(setting("bert", method))


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2"])
def test_a_prefix_leaves_the_longest_rows_room(name, setting):
    outcome = tune(setting(name, "prefix-tuning", steps=1))
    examples, ledger = [Example("great " * MAX_LENGTH, 1), Example("bad", 0)], Ledger()
    assert np.isfinite(outcome.classifier.scores(examples, ledger)).all()
    assert ledger.truncated == 1


def test_bitfit_changes_biases_alone(setting, tiny_folder, tmp_path, last_wins):
    folder = run(setting("bert", "bitfit", steps=2, learning_rate=0.1), tmp_path).folder
    before, after = load_file(tiny_folder("bert") / "model.safetensors"), load_file(folder / "weights.safetensors")
    biases = {name for name in before if name.endswith("bias")}
    assert set(after) <= biases
    changed = [name for name in after if np.abs(after[name] - before[name]).max() > 0.01]
    assert len(changed) >= 18, "all but the keys' biases, which a softmax does not see"


def test_a_model_without_biases_has_nothing_for_bitfit(setting):
    with pytest.raises(BackendError, match="has no biases"):
        tune(setting("llama", "bitfit"))


def test_model_tuning_saves_the_whole_model(setting, tiny_folder, tmp_path, last_wins):
    folder = run(setting("bert", "model-tuning", steps=2, learning_rate=0.1), tmp_path).folder
    before, after = load_file(tiny_folder("bert") / "model.safetensors"), load_file(folder / "weights.safetensors")
    assert set(after) == set(before)
    assert np.abs(after[WORD_EMBEDDINGS] - before[WORD_EMBEDDINGS]).max() > 0.01


@pytest.mark.parametrize(
    "variant", ["sequential", "parallel", "scaled-parallel", "parallel-attention", "multi-head-parallel"]
)
@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2", "llama"])
def test_adapters_start_with_no_effect(name, variant, tiny_backend):
    from test_local_backend import SAME_FOR_BOTH

    backend, rows = tiny_backend(name), SAME_FOR_BOTH["no prompt"].rows()
    model = backend.trainable()
    Adapter(variant=variant, bottleneck=3).thaw(model.model)
    expected = backend.label_scores(np.zeros((1, 0, 32), np.float32), backend.encode(rows, WORDS))[0]
    np.testing.assert_allclose(model.scores(model.encode(rows, WORDS)), expected, atol=2e-5)


@pytest.mark.parametrize(("variant", "scale"), [("sequential", 1), ("parallel", 1), ("scaled-parallel", 4)])
def test_adapters_stand_where_they_should(variant, scale, tiny_backend):
    model = tiny_backend("bert").trainable().model
    layer, hidden = model.bert.encoder.layer[1], torch.randn(2, 3, 32)
    inner = layer.intermediate(hidden)
    plain = layer.output.dense(inner)
    Adapter(variant=variant, bottleneck=3).thaw(model)
    adapter = layer.output.dense.adapter
    torch.nn.init.normal_(adapter.up.weight)
    after = plain if variant == "sequential" else hidden
    expected = plain + scale * adapter.up(torch.relu(adapter.down(after)))
    torch.testing.assert_close(layer.output.dense(layer.intermediate(hidden)), expected)
    assert hasattr(layer.attention.output.dense, "adapter") == (variant == "sequential")


ATTENTIONS = {
    "bert": ("bert.encoder.layer.1.attention.self.query", "bert.encoder.layer.1.attention.output.dense"),
    "roberta": ("roberta.encoder.layer.1.attention.self.query", "roberta.encoder.layer.1.attention.output.dense"),
    "distilbert": (
        "distilbert.transformer.layer.1.attention.q_lin",
        "distilbert.transformer.layer.1.attention.out_lin",
    ),
    "gpt2": ("transformer.h.1.attn.c_attn", "transformer.h.1.attn.c_proj"),
    "llama": ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.o_proj"),
}


@pytest.mark.parametrize("variant", ["parallel-attention", "multi-head-parallel"])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_adapters_at_the_attention_follow_their_equations(name, variant, tiny_backend):
    """He et al. 2022, table 1, in a few lines, from what the top attention of the plain model is given and gives."""
    plain, adapted = (tiny_backend(name).trainable().model.eval() for _ in range(2))
    Adapter(variant=variant, bottleneck=3).thaw(adapted)
    for adapter_name, weight in adapted.named_parameters():
        if ".1." in adapter_name and "adapter" in adapter_name:  # the layers below stay as they are
            torch.nn.init.normal_(weight)
    query, out = (plain.get_submodule(place) for place in ATTENTIONS[name])
    seen = {}
    query.register_forward_hook(lambda module, args, output: seen.update(x=args[0], q=output[..., :32]))
    out.register_forward_hook(lambda module, args, output: seen.update(heads=args[0], h=output))
    host = adapted.get_submodule(ATTENTIONS[name][1])
    host.register_forward_hook(lambda module, args, output: seen.update(found=output))
    ids = torch.arange(5, 15).view(2, 5)
    with torch.no_grad():
        plain(input_ids=ids), adapted(input_ids=ids)
        without = seen["h"]
        if variant == "parallel-attention":
            expected = without + host.adapter.up(torch.relu(host.adapter.down(seen["x"])))
        else:
            change = [
                torch.relu(seen["q"][..., 8 * i : 8 * i + 8] @ host.adapter.down[i]) @ host.adapter.up[i]
                for i in range(4)
            ]
            expected = out(seen["heads"] + torch.cat(change, dim=-1))
    torch.testing.assert_close(seen["found"], expected, atol=1e-5, rtol=1e-5)
    assert (seen["found"] - without).abs().max() > 0.1


def test_a_bottleneck_in_every_head_costs_what_one_at_the_attention_costs(tiny_backend):
    sizes = []
    for variant in ("parallel-attention", "multi-head-parallel"):
        model = tiny_backend("bert").trainable().model
        Adapter(variant=variant, bottleneck=3).thaw(model)
        weights = [w for name, w in model.named_parameters() if "adapter" in name and "bias" not in name]
        sizes.append(sum(w.numel() for w in weights))
    assert sizes == [2 * 2 * 3 * 32] * 2  # layers * 2 r H


def test_adapters_name_the_architectures_they_know(setting, monkeypatch):
    monkeypatch.delitem(__import__("bbt.baselines.adapter", fromlist=["PLACES"]).PLACES, "bert")
    with pytest.raises(BackendError, match=r"unknown model type for adapters 'bert'.*roberta"):
        tune(setting("bert", "adapter"))


def test_accumulated_batches_are_one_large_batch(setting, last_wins):
    found, losses = [], []
    for size, n in ((8, 1), (4, 2)):
        observer = Losses()
        config = setting("bert", "prompt-tuning", steps=2, batch_size=size, gradient_accumulation=n)
        found.append(tune(config, observer=observer))
        losses.append(observer.losses)
    whole, parts = (outcome.classifier.prompt.embeddings for outcome in found)
    np.testing.assert_allclose(whole, parts, atol=1e-5)
    np.testing.assert_allclose(*losses, atol=1e-5)
    assert found[0].result["cost"]["train_queries"] == found[1].result["cost"]["train_queries"] == 2


def test_what_the_start_has_cost_is_counted_beside_the_steps(setting):
    outcome = tune(setting("bert", "prompt-tuning", steps=2, n_screened=3))
    assert outcome.result["cost"]["train_queries"] == 3 + 2


def test_adafactor_takes_the_rate_as_it_is(setting, last_wins):
    """Its first step has a root mean square of one, times the rate (Lester et al.: no parameter scaling)."""
    prompts = [
        tune(setting("bert", "prompt-tuning", steps=1, learning_rate=rate, optimizer="adafactor"))
        for rate in (1e-9, 0.3)
    ]
    start, moved = (outcome.classifier.prompt.embeddings for outcome in prompts)
    assert np.sqrt(np.square(moved - start).mean()) == pytest.approx(0.3, rel=0.1)


def test_a_loss_that_is_no_number_ends_the_training_and_is_never_the_best(setting):
    outcome = tune(setting("bert", "model-tuning", steps=20, dev_every=1, learning_rate=1e30))
    assert outcome.result["selected"]["who"] == "step 0"
    assert outcome.result["cost"]["train_queries"] < 20
    assert np.isfinite(outcome.classifier.scores([Example("bad", 0)], Ledger())).all()


@pytest.mark.parametrize("method", ["prompt-tuning", "p-tuning"])
def test_the_prompt_may_stand_in_several_places_between_anchors(method, setting, tmp_path):
    template = "{prompt} . {text} . {prompt} It was {prompt} {mask}"
    outcome = run(setting("gpt2", method, template=template, steps=2), tmp_path)
    prompt = SoftPrompt.load(outcome.folder)
    assert prompt.embeddings.shape == (4, 32)
    assert prompt.template == template


def test_a_saved_prompt_is_a_start(setting, tmp_path, last_wins):
    first = run(setting("bert", "prompt-tuning", steps=2, dev_every=1), tmp_path)
    config = setting("bert", "prompt-tuning", steps=1, learning_rate=1e-9, init=str(first.folder))
    again = tune(config)
    np.testing.assert_allclose(again.classifier.prompt.embeddings, SoftPrompt.load(first.folder).embeddings, atol=1e-6)


def test_autoprompt_finds_tokens_that_lower_the_loss(setting):
    observer, config = Losses(), setting("roberta", "auto-prompt", steps=12, n_candidates=1, batch_size=8)
    outcome = tune(config, observer=observer)
    assert observer.losses == sorted(observer.losses, reverse=True)
    assert 3 < len(set(observer.losses)) < 12, "some tokens are better, some are not"
    prompt, cost = outcome.classifier.prompt, outcome.result["cost"]
    words = outcome.classifier.backend.embed_ids(prompt.provenance["token_ids"])[0]
    np.testing.assert_array_equal(prompt.embeddings, words)
    assert len(prompt.provenance["text"]) > 0
    assert cost["train_queries"] == 1 + 12


@pytest.mark.parametrize("method", ["lora", "adapter"])
def test_a_run_that_has_not_finished_cannot_be_loaded(method, setting, tmp_path, tiny_backend):
    config = setting("bert", method)
    task = make_experiment(config, tiny_backend("bert")).task
    with pytest.raises(RunError, match="has its run finished"):
        load_method(config).load(tmp_path, tiny_backend("bert"), task)
