"""Runs are shared out over devices: each process sees one GPU, which no other run has meanwhile."""

import threading

import pytest

from bbt.compare.devices import Devices, visible
from bbt.errors import ConfigError


def test_a_device_is_one_runs_at_a_time(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    devices, third = Devices(["cuda:0", "cuda:1"]), []
    with devices.one() as first:
        with devices.one() as second:
            assert [first, second] == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
            waiting = threading.Thread(target=lambda: third.append(devices.one().__enter__()))
            waiting.start()
            waiting.join(0.1)
            assert not third
        waiting.join(5)
        assert third == [second]


def test_without_names_a_process_sees_all_there_is():
    with Devices().one() as environment:
        assert environment == {}


def test_numbers_count_what_this_process_sees(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert [visible(name) for name in ("cuda:0", "cuda:1", "cpu")] == ["3", "5", ""]
    with pytest.raises(ConfigError, match=r"no cuda:2: CUDA_VISIBLE_DEVICES='3, 5' shows 2"):
        visible("cuda:2")


def test_a_name_that_is_no_device_is_refused():
    with pytest.raises(ConfigError, match="'gpu1' is no device; give names such as cuda:0,cuda:1 or cpu"):
        Devices(["cuda:0", "gpu1"])
