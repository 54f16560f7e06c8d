"""Strict configuration: YAML in, dataclass-like models out; an unknown key is an error that names the nearest.

A config may name a `preset`, whose values its own override:
  default          what we found to generalise best (examples/RESULTS.md)
  paper            the ICML 2022 paper's setting ("uniform")
  released-code    the authors' released code ("normal")
"""

import typing
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from bbt.errors import ConfigError, unknown


class Strict(BaseModel):
    """Unknown keys and infinite numbers are errors; values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


StrictModel = TypeVar("StrictModel", bound=Strict)


class TaskConfig(Strict):
    """A built-in task by name, or your own: then template, label_words and label_names are needed."""

    name: str = "sst2"
    template: str | None = None
    label_words: tuple[str, ...] | None = None
    label_names: tuple[str, ...] | None = None
    metrics: tuple[str, ...] | None = None


def _number_as_text(value: object) -> object:
    """A number where a name may stand; a truth value (YAML's yes and no) stays one and is refused."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


Name = Annotated[str, BeforeValidator(_number_as_text)]


class ColumnsConfig(Strict):
    """Names of your data's columns; their numbers from the left, from 1 on, in files without a header."""

    text: Name = "text"
    text_pair: Name | None = None
    label: Name = "label"


class DataConfig(Strict):
    """Where the rows come from. Of `train`, `k` rows a class are drawn by `seed` (none: the run's seed), or `all` are
    taken; dev are the next k, or all rows of the file `dev`. The same of the hub's `splits`: train and test, or train,
    dev and test. `labels` are the values of the label column in label order (none: 0 to K - 1); without a `header` the
    first line of a csv or tsv is a row. `note` says which rows these are, for the tables. With `folds` the labelled
    rows are pooled and cut anew: dev is the `fold`-th of so many parts, train the others."""

    source: Literal["bundled", "files", "huggingface"] = "bundled"
    k: int | Literal["all"] = 16
    seed: int | None = Field(None, ge=0)
    train: str | None = None
    dev: str | None = None
    test: str | None = None
    columns: ColumnsConfig | None = None
    header: bool = True
    labels: tuple[Name, ...] | None = None
    path: str | None = None
    subset: str | None = None
    splits: tuple[str, ...] | None = Field(None, min_length=2, max_length=3)
    note: str | None = None
    folds: int | None = Field(None, ge=2)
    fold: int = Field(0, ge=0)

    @field_validator("k", mode="before")
    @classmethod
    def _some_or_all(cls, k: object) -> object:
        """One sentence for both kinds of value."""
        if k != "all" and (not isinstance(k, int) or isinstance(k, bool) or k < 1):
            raise ValueError("need a whole number of at least 1, or all")
        return k


class ModelConfig(Strict):
    """`backend` (ours or module:Class), the model's name, and the backend's own options."""

    backend: str = "local"
    name: str = "minilm-mlm"
    options: dict[str, Any] = {}


class MethodConfig(Strict):
    """The method by name (bbt ls methods) and its own settings, which the method checks."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = "black-box"

    @property
    def settings(self) -> dict[str, Any]:
        """The method's own settings."""
        return dict(self.model_extra or {})


class PromptConfig(Strict):
    """p = p0 + A z.

    `init`: random `vocabulary` tokens, `random` normal vectors with the word embeddings' standard deviation, the
    given `text`, the `label_words`, or the path of a saved prompt; of `n_screened` random draws the one of lowest
    training loss is taken (each draw is a query). `placement`: the
    prompt stands for word embeddings, or A z is added after the embedding `layernorm` (released code).
    `scale`: A's entries by the paper (1 / sqrt(d)) or by the released code's rule from the embeddings' std.
    """

    n_prompt_tokens: int = Field(50, ge=1)
    intrinsic_dim: int = Field(500, ge=1)
    init: str = "vocabulary"
    text: str | None = None
    n_screened: int = Field(1, ge=1)
    projection: Literal["uniform", "normal", "orthonormal"] = "normal"
    scale: Literal["paper", "embeddings"] = "embeddings"
    alpha: float = Field(1.0, gt=0)
    placement: Literal["embedding", "layernorm"] = "embedding"


class OptimizerConfig(Strict):
    """Search settings; see `bbt ls optimizers` for the names."""

    name: str = "cma-separable"
    population_size: int = Field(20, ge=2)
    sigma0: float = Field(1.0, gt=0)
    bounds: tuple[float, float] | None = None
    step_size_rule: Literal["csa", "tpa"] = "csa"
    learning_rate: float = Field(0.1, gt=0)

    @field_validator("bounds")
    @classmethod
    def _around_zero(cls, bounds: tuple[float, float] | None) -> tuple[float, float] | None:
        """The search starts at z = 0."""
        if bounds and not bounds[0] < 0 < bounds[1]:
            raise ValueError("need low < 0 < high")
        return bounds


class ObjectiveConfig(Strict):
    """`loss` on the training rows (none: the released code's choice for the task); `margin` is the hinge's."""

    loss: Literal["cross_entropy", "hinge", "negative_metric"] | None = None
    margin: float = Field(2.0, gt=0)


class BudgetConfig(Strict):
    """In queries: one candidate on the whole training set. `patience` ends a run for good
    after so many dev checks without a better one."""

    queries: int = Field(8000, ge=1)
    dev_every: int = Field(100, ge=1)
    patience: int | None = Field(None, ge=1)


class PriceConfig(Strict):
    """Money, in any currency, for a million tokens `up` to the endpoint and `down` from it. A search stops before the
    run, its test included, would have cost more than the `ceiling`."""

    up: float = Field(0.0, ge=0)
    down: float = Field(0.0, ge=0)
    ceiling: float | None = Field(None, gt=0)

    def of(self, tokens_up: float, tokens_down: float) -> float:
        """What these tokens cost."""
        return (tokens_up * self.up + tokens_down * self.down) / 1e6


class SelectionConfig(Strict):
    """Which candidates dev judges, and by what: the `n_best` of lowest training loss since the last check, the
    distribution's mean, and with `baselines` the untuned prompt; the manual one then stays unless the best of them
    beats its metric by more than a standard error."""

    by: Literal["metric", "loss"] = "metric"
    n_best: int = Field(1, ge=0)
    baselines: bool = True


class EvaluationConfig(Strict):
    """What is tested: at most so many `rows` of the test set (the same draw for every run; none: all of them; 0: no
    test, the run ends with its dev rows), and with `references` also what the method started from (the manual and
    the untuned prompt). `also_test` tests the outcome on other tasks with the same labels: the built-in task's name,
    and the file of its rows (none: the bundled ones)."""

    rows: int | None = Field(None, ge=0)
    references: bool = True
    also_test: dict[str, str | None] = {}


class Config(Strict):
    """One run. The sections from `prompt` on are the black-box search's; other methods use some of them."""

    name: str | None = None
    preset: str = "default"
    seed: int = Field(0, ge=0, lt=2**32)
    task: TaskConfig = TaskConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    prompt: PromptConfig = PromptConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    budget: BudgetConfig = BudgetConfig()
    selection: SelectionConfig = SelectionConfig()
    price: PriceConfig = PriceConfig()

    @property
    def label(self) -> str:
        """What tables and run folders call the method: black-box searches go by their optimizer."""
        return self.optimizer.name if self.method.name == "black-box" else self.method.name

    def to_yaml(self) -> str:
        """As a config file, every value resolved."""
        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, then `key.path=value` overrides.

    Raises:
        ConfigError: no such file, not YAML, an unknown key or an impossible value.
    """
    tree = read_tree(path)
    for override in overrides:
        _apply(tree, override)
    return make_config(tree)


def read_tree(path: Path | str) -> dict[str, Any]:
    """A YAML file's keys and values.

    Raises:
        ConfigError: no such file, not YAML, or a key that stands twice.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no config file {path}.")
    try:
        tree = _read_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if tree is not None and not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values, got {type(tree).__name__}.")
    return tree or {}


class _Loader(yaml.SafeLoader):
    """YAML whose keys differ within a section, as the standard demands; PyYAML alone keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A section.

        Raises:
            MarkedYAMLError: a key stands twice.
        """
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
                line = key.start_mark.line + 1
                if key.value in lines:
                    where = f"lines {lines[key.value]} and {line}"
                    raise yaml.MarkedYAMLError(problem=f"key {key.value!r} stands twice, in {where}; give it once")
                lines[key.value] = line
        return super().construct_mapping(node, deep)


def _read_yaml(text: str) -> Any:
    return yaml.load(text, _Loader)  # a SafeLoader


def make_config(tree: Mapping[str, Any]) -> Config:
    """A config from nested dicts, on top of its preset.

    Raises:
        ConfigError: an unknown preset or key, or an impossible value; one line a fault.
    """
    return validated(Config, merged(preset(str(tree.get("preset", "default"))), tree))


def validated(model: type[StrictModel], tree: Mapping[str, Any], section: str = "") -> StrictModel:
    """`tree`, the part of a config that stands under `section`, as a `model`.

    Raises:
        ConfigError: an unknown key or an impossible value; one line a fault.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(model, fault, section) for fault in error.errors())) from error


def preset(name: str) -> dict[str, Any]:
    """A preset's values.

    Raises:
        ConfigError: no such preset.
    """
    folder = files("bbt") / "presets"
    names = sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))
    if name not in names:
        raise ConfigError(unknown("preset", name, names))
    values = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    return dict(values)


def parse_override(flag: str, text: str, example: str) -> tuple[str, Any]:
    """Key and value of `key=value`; the value is YAML.

    Raises:
        ConfigError: no `=`, no key, or a value that is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"{flag} {text!r}: expected key=value, e.g. {flag} {example}.")
    try:
        return key, _read_yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{flag} {text!r}: the value is not YAML: {' '.join(str(error).split())}") from error


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set `a.b.c=value` in nested dicts."""
    key, value = parse_override("--set", override, "budget.queries=500")
    *parents, leaf = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {override!r}: {parent!r} is not a section of the config.")
    tree[leaf] = value


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts: `over`'s values, and the base's where it has none."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def _explain(model: type[Strict], fault: Any, section: str) -> str:
    """One pydantic error for people."""
    path = [str(part) for part in fault["loc"]]
    if fault["type"] == "extra_forbidden":
        valid = [_dotted(section, *path[:-1], name) for name in _sibling_keys(model, path)]
        return "config: " + unknown("key", _dotted(section, *path), valid)
    said = f"config: {_dotted(section, *path)}: {fault['msg']}, got {fault['input']!r}"
    if fault["type"] == "string_type" and isinstance(fault["input"], (bool, int, float)):
        said += " (YAML reads yes, no, on, off, true, false and digits as values of their own: put it in quotes)"
    return said


def _dotted(section: str, *path: str) -> str:
    return ".".join([*([section] if section else []), *path])


def _sibling_keys(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Names of the keys that may stand where `path` does."""
    for part in path[:-1]:
        kinds = [model.model_fields[part].annotation, *typing.get_args(model.model_fields[part].annotation)]
        model = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(model.model_fields)
