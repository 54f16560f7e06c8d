"""A run's configuration: YAML in, strict models out; an unknown key is an error that names the nearest.

A config may name a `preset`, whose values its own override:
  default          what we found to generalise best (examples/RESULTS.md)
  paper            the ICML 2022 paper's setting ("uniform")
  released-code    the authors' released code ("normal")

What all methods share is checked here. The sections that only some methods read (`SECTIONS`) are kept as they were
given; the method checks them (`bbt.methods.load_method`), since it alone knows which of them it reads.
"""

import typing
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError

from bbt.errors import ConfigError, unknown
from bbt.settings import (
    CalibrationKind,
    DataConfig,
    EvaluationConfig,
    MethodConfig,
    ModelConfig,
    PriceConfig,
    Strict,
    TaskConfig,
)

StrictModel = TypeVar("StrictModel", bound=Strict)
FORMAT: typing.Final = "bbt-config/2"
"""The format that a run folder's config.yaml names; version 0.1 named none and wrote every section of all methods."""

SECTIONS = ("prompt", "optimizer", "objective", "budget", "selection")
"""The sections that a method may read, each under its name in the file."""


class Config(Strict):
    """The configuration of one run."""

    format: Literal["bbt-config/2"] | None = None
    """The format of the file; one that names another is refused."""
    name: str | None = None
    """The name of the run's folder (none: it is made of what is run)."""
    preset: str = "default"
    """The preset whose values the config overrides."""
    seed: int = Field(0, ge=0, lt=2**32)
    """The seed of everything that the run draws."""
    task: TaskConfig = TaskConfig()
    """The task: its template, label words and metrics."""
    data: DataConfig = DataConfig()
    """Where the rows come from."""
    model: ModelConfig = ModelConfig()
    """The model, and the backend that runs it."""
    method: MethodConfig = MethodConfig()
    """The method and its own settings."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """What is tested when the method has ended."""
    price: PriceConfig = PriceConfig()
    """What tokens cost, and the ceiling of the run."""
    calibration: CalibrationKind = "fitted"
    """How class biases are found: see `bbt.scoring.calibration`."""
    observers: tuple[str, ...] = ()
    """Observers: our trackers by name (bbt ls observers), or the user's own as `module:Class`."""
    sections: dict[str, dict[str, Any]] = Field({}, exclude=True)
    """What the user gave of `SECTIONS`, by name."""
    defaults: dict[str, dict[str, Any]] = Field({}, exclude=True)
    """What stands below the sections, by name: a preset, and what a comparison's methods share. A method takes what it
    reads of it."""


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, and apply `key.path=value` overrides.

    Raises:
        ConfigError: no such file, not YAML, an unknown key or an impossible value.
    """
    tree = read_tree(path)
    for override in overrides:
        _apply(tree, override)
    return make_config(tree)


def read_run_config(folder: Path | str) -> Config:
    """Read the config of a run folder. One of version 0.1 holds every section, whether its method read it or not.

    Raises:
        ConfigError: as `load_config`.
    """
    before = {"task": {"label_space": True}, "data": {"clean": False}}  # presets did not set these, as they do now
    tree = merged(before, read_tree(Path(folder) / "config.yaml"))
    if tree.get("format") == FORMAT:
        return make_config(tree)
    method = dict(tree.get("method") or {})
    if method.get("name") == "token-search" and "optimizer" in method:
        method["algorithm"] = method.pop("optimizer")
    own = {"calibration": "none", **{key: value for key, value in tree.items() if key not in SECTIONS}}
    shared = {key: value for key, value in tree.items() if key in SECTIONS}
    shared["prompt"] = {"tied": False, **(shared.get("prompt") or {})}
    return make_config({**own, "method": method}, shared)


def make_config(tree: Mapping[str, Any], shared: Mapping[str, Any] | None = None) -> Config:
    """Make a config from nested dicts, on top of its preset. Of the sections in `shared` a method takes what it reads;
    those in `tree` it must read.

    Raises:
        ConfigError: an unknown preset or key, or an impossible value; one line a fault.
    """
    base = preset(str(tree.get("preset", "default")))
    own = {key: value for key, value in tree.items() if key not in SECTIONS}
    valid = sorted({*Config.model_fields, *SECTIONS} - {"sections", "defaults"})
    wrong = [key for key in own if key not in valid]
    if wrong:
        raise ConfigError("; ".join(f"config: {unknown('key', str(key), valid)}" for key in wrong))
    own = merged({key: value for key, value in base.items() if key not in SECTIONS}, own)
    below = merged({key: value for key, value in base.items() if key in SECTIONS}, shared or {})
    sections = {key: _section(key, tree[key]) for key in SECTIONS if key in tree}
    defaults = {key: _section(key, value) for key, value in below.items() if key in SECTIONS}
    return validated(Config, {**own, "sections": sections, "defaults": defaults})


def _section(name: str, value: Any) -> dict[str, Any]:
    """A section's keys and values; an empty section has none."""
    if not isinstance(value or {}, Mapping):
        raise ConfigError(f"config: {name}: expected keys and values, got {value!r}.")
    return dict(value or {})


def read_tree(path: Path | str) -> dict[str, Any]:
    """Read a YAML file's keys and values.

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
        """Read a section.

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
    return yaml.load(text, _Loader)  # `_Loader` is a SafeLoader


def validated(model: type[StrictModel], tree: Mapping[str, Any], section: str = "") -> StrictModel:
    """Make a `model` of `tree`, the part of a config that stands under `section`.

    Raises:
        ConfigError: an unknown key or an impossible value; one line a fault.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(model, fault, section) for fault in error.errors())) from error


def preset(name: str) -> dict[str, Any]:
    """The values of a preset.

    Raises:
        ConfigError: no such preset.
    """
    folder = files("bbt") / "presets"
    names = sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))
    if name not in names:
        raise ConfigError(unknown("preset", name, names))
    values = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    return dict(values or {})


def parse_override(flag: str, text: str, example: str) -> tuple[str, Any]:
    """The key and the value of `key=value`; the value is YAML.

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
    """Two nested dicts as one: `over`'s values, and the base's where it has none."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def _explain(model: type[Strict], fault: Any, section: str) -> str:
    """One pydantic error as a line for people."""
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
    """The names of the keys that may stand where `path` does."""
    for part in path[:-1]:
        kinds = [model.model_fields[part].annotation, *typing.get_args(model.model_fields[part].annotation)]
        model = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(model.model_fields)
