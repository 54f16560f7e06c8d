"""What YAML makes of what people write, in files and on the command line."""

import pytest
import yaml

from bbt.config import load_config, make_config, parse_override
from bbt.errors import ConfigError
from bbt.methods import to_yaml


def file(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("budget: {queries: 20}\nseed: 1\nbudget: {dev_every: 7}\n", "key 'budget' stands twice, in lines 1 and 3"),
        ("task:\n  name: sst2\n  metrics: [f1]\n  name: yelp\n", "key 'name' stands twice, in lines 2 and 4"),
        ("budget: {queries: 20, queries: 30}\n", "key 'queries' stands twice, in lines 1 and 1"),
    ],
)
def test_a_key_that_stands_twice_is_an_error_with_its_lines(tmp_path, text, said):
    with pytest.raises(ConfigError, match=rf"c\.yaml is not YAML: .*{said}; give it once"):
        load_config(file(tmp_path, text))
    with pytest.raises(ConfigError, match="'b' stands twice"):
        parse_override("--set", "a={b: 1, b: 2}", "a=1")


def test_the_same_key_in_two_sections_and_merged_ones_are_sound(tmp_path):
    text = "task: &t {name: sst2}\nmodel: {name: minilm-mlm}\nmethod: {<<: *t, name: manual}\n"
    config = load_config(str(file(tmp_path, text)))
    assert (config.task.name, config.model.name, config.method.name) == ("sst2", "minilm-mlm", "manual")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("task: {label_words: [yes, no]}", r"task\.label_words\.0: .*got True"),
        ("task: {label_words: ['1', 2]}", r"task\.label_words\.1: .*got 2"),
        ("task: {name: on}", r"task\.name: .*got True"),
        ("data: {labels: [no, yes]}", r"data\.labels\.0: .*got False"),
        ("data: {columns: {label: yes}}", r"data\.columns\.label: .*got True"),
    ],
)
def test_a_word_that_yaml_reads_as_something_else_is_to_be_quoted(tmp_path, text, key):
    with pytest.raises(ConfigError, match=rf"config: {key} \(YAML reads yes, no, .*put it in quotes"):
        load_config(file(tmp_path, text))


def test_another_fault_says_nothing_of_quotes():
    with pytest.raises(ConfigError, match=r"got None") as fault:
        make_config({"task": {"name": None}})
    assert "quotes" not in str(fault.value)


def test_columns_by_number_and_the_new_data_keys_are_kept_in_a_run_s_record(tmp_path):
    data = "data: {source: files, train: a.csv, dev: b.csv, test: c.csv, k: all, header: false, labels: [0, 1], "
    config = load_config(file(tmp_path, data + "columns: {text: 2, label: 1}}"))
    assert (config.data.columns.text, config.data.columns.label) == ("2", "1")
    assert load_config(file(tmp_path, to_yaml(config))).data == config.data


def test_a_record_of_the_version_before_loads_with_the_new_keys_defaults(tmp_path):
    tree = yaml.safe_load(to_yaml(make_config({})))
    for key in ("dev", "header"):
        del tree["data"][key]
    assert load_config(file(tmp_path, yaml.safe_dump(tree))).data == make_config({}).data


@pytest.mark.parametrize("splits", [["test"], ["a", "b", "c", "d"]])
def test_splits_are_two_or_three(splits):
    with pytest.raises(ConfigError, match=r"data\.splits"):
        make_config({"data": {"splits": splits}})
