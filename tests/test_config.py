from pathlib import Path

import pytest
from pydantic import BaseModel

from bbt.config import SECTIONS, Config, load_config, make_config, preset, read_run_config
from bbt.errors import ConfigError
from bbt.methods import load_method, make_method, resolved_tree, to_yaml
from bbt.methods.black_box import BlackBox
from bbt.settings import MethodConfig

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))


def keys_of(model, path=()):
    """Every key of a model as a tuple of its path, sections included."""
    for name, field in type(model).model_fields.items():
        yield (*path, name)
        value = getattr(model, name)
        if name == "columns":
            value = field.annotation.__args__[0]()
        if isinstance(value, BaseModel):
            yield from keys_of(value, (*path, name))


KEYS = [
    *(
        ".".join(key)
        for key in keys_of(Config())
        if key[0] not in ("method", "sections", "defaults") or key == ("method",)
    ),
    *(".".join(key) for key in keys_of(BlackBox()) if key[0] in SECTIONS),
]
"""Of a black-box run; a method checks its own settings: tests/test_methods.py."""


def checked(tree):
    """The method of a config, all of which has been checked by then."""
    return load_method(make_config(tree))


def nested(path, value):
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def test_the_list_of_keys_reaches_every_depth():
    assert {"seed", "task.name", "data.columns.text_pair", "optimizer.bounds"} <= set(KEYS)
    assert len(KEYS) > 50


@pytest.mark.parametrize("key", KEYS)
def test_a_misspelt_key_names_itself_and_the_nearest(key):
    wrong = key + "x"
    with pytest.raises(ConfigError) as caught:
        checked(nested(wrong, 1))
    message = str(caught.value)
    assert message.startswith(f"config: unknown key {wrong!r}. Did you mean {key!r}?")
    assert "\n" not in message


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_config_loads(path):
    assert load_method(load_config(path))


def test_there_are_shipped_configs():
    assert CONFIGS


def test_a_config_survives_the_way_to_yaml_and_back(tmp_path):
    config = make_config({"preset": "paper", "task": {"name": "rte"}, "data": {"columns": {"text": "s"}}})
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert resolved_tree(load_config(path)) == resolved_tree(read_run_config(tmp_path)) == resolved_tree(config)


def test_overrides_reach_any_depth_and_are_typed_as_yaml(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("budget: {queries: 10, patience: 3}\n")
    overrides = [
        "budget.queries=500",
        "budget.patience=null",
        "data.columns.text=sentence",
        "optimizer.bounds=[-5, 5]",
        "selection.baselines=false",
        "prompt.text=a=b",
        "seed=3",
    ]
    config = load_config(path, overrides)
    method = load_method(config)
    assert (method.budget.queries, method.budget.patience, config.seed) == (500, None, 3)
    assert config.data.columns is not None
    assert config.data.columns.text == "sentence"
    assert method.optimizer.bounds == (-5.0, 5.0)
    assert method.selection.baselines is False
    assert method.prompt.text == "a=b"


def test_an_override_comes_before_the_preset(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("seed: 1\n")
    config = load_method(load_config(path, ["preset=paper", "optimizer.sigma0=0.25"]))
    assert (config.optimizer.sigma0, config.optimizer.bounds) == (0.25, (-5.0, 5.0))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("budget.queries", "expected key=value"),
        ("=3", "expected key=value"),
        ("seed.x=3", "'seed' is not a section"),
        ("budget.querys=3", r"Did you mean 'budget\.queries'\?"),
        ("budget.queries=[1", r"--set 'budget\.queries=\[1': the value is not YAML"),
        ("budget.queries=many", r"config: budget\.queries: .*got 'many'"),
    ],
)
def test_a_faulty_override_is_quoted(tmp_path, override, message):
    path = tmp_path / "c.yaml"
    path.write_text("seed: 1\n")
    with pytest.raises(ConfigError, match=message) as caught:
        load_method(load_config(path, [override]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("budget.queries", 0),
        ("budget.patience", 0),
        ("seed", -1),
        ("seed", 2**32),
        ("data.k", 0),
        ("data.source", "bundeled"),
        ("prompt.n_prompt_tokens", 0),
        ("prompt.intrinsic_dim", 2.5),
        ("prompt.projection", "gaussian"),
        ("prompt.alpha", 0),
        ("prompt.alpha", float("inf")),
        ("optimizer.sigma0", -1),
        ("optimizer.sigma0", float("nan")),
        ("optimizer.population_size", 1),
        ("optimizer.bounds", [5, -5]),
        ("optimizer.bounds", [1, 2]),
        ("optimizer.bounds", [1]),
        ("optimizer.step_size_rule", "msr"),
        ("objective.loss", "focal"),
        ("selection.by", "accuracy"),
        ("task", None),
        ("seed", False),
        ("budget.queries", True),
        ("budget.patience", True),
        ("prompt.alpha", True),
        ("price.up", True),
        ("evaluation.rows", True),
        ("selection.n_best", False),
    ],
)
def test_an_impossible_value_is_one_line_that_names_key_and_value(key, value):
    with pytest.raises(ConfigError) as caught:
        checked(nested(key, value))
    assert str(caught.value).startswith(f"config: {key}")
    assert repr(value) in str(caught.value) or key == "optimizer.bounds"
    assert "\n" not in str(caught.value)


def test_several_faults_are_told_at_once():
    with pytest.raises(ConfigError, match=r"seed.*data\.k"):
        make_config({"seed": -1, "data": {"k": 0}})
    with pytest.raises(ConfigError, match=r"budget\.queries.*dev_every"):
        checked({"budget": {"queries": 0, "dev_every": 0}})


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a: [1", "is not YAML"), (b"- 1\n- 2", "got list"), (b"a: \xff", "is not YAML")],
)
def test_a_file_that_is_no_config_is_named(tmp_path, content, message):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert "c.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no config file .*gone\.yaml"):
        load_config(tmp_path / "gone.yaml")


def test_an_empty_file_is_the_default(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("")
    assert load_config(path) == make_config({})


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown preset 'papr'\. Did you mean 'paper'\?"):
        preset("papr")


BOTH = {
    "prompt": {"n_prompt_tokens": 50, "intrinsic_dim": 500},
    "optimizer": {"name": "cma", "population_size": 20, "step_size_rule": "csa"},
    "budget": {"queries": 8000, "dev_every": 100},
    "objective": {"margin": 2.0},
    "selection": {"by": "metric"},
    "data": {"k": 16},
}
PAPER = {
    "prompt": {"projection": "uniform", "scale": "paper", "placement": "embedding", "init": "vocabulary", "alpha": 1.0},
    "optimizer": {"sigma0": 0.5, "bounds": (-5.0, 5.0)},
    "objective": {"loss": "cross_entropy"},
}
RELEASED_CODE = {
    "prompt": {"projection": "normal", "scale": "embeddings", "placement": "layernorm", "init": "ids", "alpha": 1.0},
    "optimizer": {"sigma0": 1.0, "bounds": None},
    "objective": {"loss": None},  # the task's own: see test_task
}


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("paper", BOTH), ("paper", PAPER), ("released-code", BOTH), ("released-code", RELEASED_CODE)],
)
def test_presets_hold_the_references_numbers(name, numbers):
    config = {**make_config({"preset": name}).model_dump(), **checked({"preset": name}).model_dump()}
    for section, values in numbers.items():
        assert {key: config[section][key] for key in values} == values


@pytest.mark.parametrize(
    ("method", "section", "reads"),
    [
        ("manual", {"budget": {"queries": 5}}, "manual reads none of the sections"),
        ("in-context", {"optimizer": {"name": "cma"}}, "in-context reads selection"),
        ("token-search", {"objective": {"loss": "hinge"}, "prompt": {"alpha": 2}}, r"unknown key 'prompt\.alpha'"),
        ("prompt-tuning", {"prompt": {"intrinsic_dim": 5}}, r"unknown key 'prompt\.intrinsic_dim'"),
        ("prompt-tuning", {"selection": {"n_best": 5}}, r"unknown key 'selection\.n_best'"),
        ("ensemble", {"budget": {"querys": 5}}, r"unknown key 'budget\.querys'. Did you mean 'budget\.queries'"),
    ],
)
def test_what_a_method_does_not_read_is_refused(method, section, reads):
    with pytest.raises(ConfigError, match=reads):
        checked({"method": {"name": method}, **section})


def test_of_shared_sections_a_method_takes_what_it_reads():
    shared = {"prompt": {"alpha": 3, "n_prompt_tokens": 7}, "budget": {"queries": 5}}
    tuning = load_method(make_config({"method": {"name": "prompt-tuning"}}, shared))
    assert tuning.prompt.n_prompt_tokens == 7
    assert load_method(make_config({}, shared)).prompt.alpha == 3
    assert load_method(make_config({"method": {"name": "manual"}}, shared)).tree() == ({"n_words": 0}, {})


def test_the_default_preset_is_what_the_settings_say_by_themselves():
    assert checked({}) == BlackBox()


def test_a_method_checks_its_settings_where_there_is_no_file():
    with pytest.raises(ConfigError, match=r"unknown key 'method\.stepz'. Did you mean 'method\.steps'"):
        make_method(MethodConfig(name="lora", stepz=3), {}, {})


def test_sections_are_keys_and_values():
    assert "budget" in SECTIONS
    with pytest.raises(ConfigError, match=r"config: budget: expected keys and values, got 500"):
        make_config({"budget": 500})
