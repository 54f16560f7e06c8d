"""Every method in one protocol: the same split, template, label words, dev selection and test set.

To add one, write a subclass of `Method` in a file of its own (here if it is forward-only, in `bbt/baselines` if it
needs gradients) and name it in `METHODS`. Its fields are its settings, which a config gives under `method:` beside
the name. Imported only when asked for.
"""

from importlib import import_module
from typing import cast

from bbt.config import MethodConfig, validated
from bbt.errors import ConfigError, unknown
from bbt.methods.base import Method

METHODS = {
    "black-box": ("bbt.methods.black_box:BlackBox", "Black-Box Tuning: a search over z, p = p0 + A z"),
    "bbtv2": ("bbt.methods.bbtv2:BBTv2", "BBTv2: a prompt for every layer, searched layer by layer"),
    "ensemble": ("bbt.methods.ensemble:Ensemble", "several trained classifiers, log-probabilities averaged"),
    "feature-bilstm": ("bbt.baselines.feature_bilstm:FeatureBiLSTM", "an LSTM on frozen hidden states"),
    "feature-mlp": ("bbt.methods.feature_mlp:FeatureMLP", "a perceptron on frozen hidden states"),
    "in-context": ("bbt.methods.in_context:InContext", "solved training rows before the text"),
    "hard-prompt": (
        "bbt.methods.hard_prompt:HardPromptTuning",
        "p0 + A z rounded to the nearest words: a readable prompt",
    ),
    "token-search": ("bbt.methods.token_search:TokenSearch", "a discrete search over prompts of words (nevergrad)"),
    "manual": ("bbt.methods.manual:Manual", "the template's words alone"),
    "prompt-mixture": ("bbt.methods.prompt_mixture:PromptMixture", "a searched mixture of prompts tuned before"),
    "prompt-selection": ("bbt.methods.prompt_selection:PromptSelection", "the best of several manual prompts"),
    "attempt": ("bbt.baselines.attempt:Attempt", "gradients: an attentional mixture of prompts tuned before"),
    "prompt-tuning": ("bbt.baselines.prompt_tuning:PromptTuning", "gradients: the soft prompt's vectors"),
    "p-tuning": ("bbt.baselines.p_tuning:PTuning", "gradients: a network (LSTM) that makes the soft prompt"),
    "prefix-tuning": (
        "bbt.baselines.prefix_tuning:PrefixTuning",
        "gradients: P-Tuning v2, keys and values left of every row in every layer",
    ),
    "auto-prompt": ("bbt.baselines.auto_prompt:AutoPrompt", "gradients: a search over real tokens"),
    "adapter": ("bbt.baselines.adapter:Adapter", "gradients: bottleneck networks in every layer"),
    "lora": ("bbt.baselines.lora:Lora", "gradients: low-rank changes of attention weights"),
    "bitfit": ("bbt.baselines.bitfit:BitFit", "gradients: the biases"),
    "model-tuning": ("bbt.baselines.model_tuning:ModelTuning", "gradients: every weight"),
}
"""Name -> where its class is, and what it is."""


def load_method(config: MethodConfig) -> Method:
    """A method with its settings.

    Raises:
        ConfigError: no such method, or settings that it does not take.
    """
    if config.name not in METHODS:
        raise ConfigError(unknown("method", config.name, METHODS))
    module, _, name = METHODS[config.name][0].partition(":")
    kind = cast(type[Method], getattr(import_module(module), name))
    return validated(kind, config.settings, "method")


__all__ = ["METHODS", "Method", "load_method"]
