"""Every method in one protocol: the same split, template, label words, dev selection and test set.

To add one, write a subclass of `Method` in a file of its own (here if it is forward-only, in `bbt/baselines` if it
needs gradients) and name it in `METHODS`. Its fields are its settings. A config may also name a `module:Class` of the
user's own. Imported only when asked for.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import yaml

from bbt.config import FORMAT, Config
from bbt.errors import ConfigError
from bbt.methods.base import Method
from bbt.names import Table, resolved
from bbt.settings import MethodConfig

METHODS: Table = {
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
    "instruction": ("bbt.methods.instruction:Instruction", "words of one's own in the prompt's place"),
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


def load_method(config: Config) -> Method:
    """The config's method with its settings.

    Raises:
        ConfigError: no such method, or settings or sections that it does not read.
    """
    return make_method(config.method, config.sections, config.defaults)


def make_method(
    method: MethodConfig, sections: Mapping[str, Mapping[str, Any]], defaults: Mapping[str, Mapping[str, Any]]
) -> Method:
    """Make a method with its own settings and the sections that it reads; of the `defaults` it takes what it knows.

    Raises:
        ConfigError: as `load_method`, or what `module:Class` names is no method.
    """
    kind = resolved("method", method.name, METHODS)
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise ConfigError(f"method {method.name!r} is no subclass of bbt.methods.Method.")
    return kind.configured(method.name, method.settings, sections, defaults)


def methods_for(scored_by: str) -> list[str]:
    """The names of the methods that take tasks which are scored so, of those whose packages are installed."""
    names = []
    for name in METHODS:
        with suppress(ConfigError):
            if scored_by in resolved("method", name, METHODS).takes:
                names.append(name)
    return names


def label(config: Config) -> str:
    """What tables and run folders call the config's method."""
    return load_method(config).label(config.method.name)


def resolved_tree(config: Config) -> dict[str, Any]:
    """The config as nested dicts, every value resolved: of the sections those that its method reads."""
    own, sections = load_method(config).tree()
    tree = config.model_dump(mode="json")
    return {**tree, "format": FORMAT, "method": {"name": config.method.name, **own}, **sections}


def to_yaml(config: Config) -> str:
    """The config as a file of a run folder."""
    return str(yaml.safe_dump(resolved_tree(config), sort_keys=False))


__all__ = ["METHODS", "Method", "label", "load_method", "make_method", "methods_for", "resolved_tree", "to_yaml"]
