"""Random streams: what becomes of them when a run goes on elsewhere."""

from __future__ import annotations

import pytest
import torch
from tests_support import CPU

from compute.random_streams import RandomStreams


def used_streams() -> RandomStreams:
    streams = RandomStreams(3, CPU)
    for name in ("acting", "replay"):
        streams.uniform(name, 5)
    return streams


def test_streams_go_on_also_those_that_were_not_asked_for_in_between() -> None:
    streams = used_streams()
    once, twice = RandomStreams(3, CPU), RandomStreams(3, CPU)
    once.load_state_dict(streams.state_dict())
    once.uniform("acting", 0)
    twice.load_state_dict(once.state_dict())
    for name in ("acting", "replay"):
        assert torch.equal(twice.uniform(name, 4), streams.uniform(name, 4))


def test_a_stream_of_another_kind_of_device_begins_anew() -> None:
    state = used_streams().state_dict()
    state["streams"]["acting"] = {"device": "cuda", "state": torch.zeros(16, dtype=torch.uint8)}
    moved = RandomStreams(3, CPU)
    moved.load_state_dict(state)
    assert torch.equal(moved.uniform("acting", 5), RandomStreams(3, CPU).uniform("acting", 5))
    moved = RandomStreams(3, torch.device("cuda"))
    moved.load_state_dict(used_streams().state_dict())  # makes no generator before it knows where
    assert moved.generator("replay", CPU).device == CPU


@pytest.mark.parametrize("damaged", [{}, None, {"device": "cpu"}, {"device": "cpu", "state": torch.zeros(3)}])
def test_what_is_no_state_of_a_stream_is_refused_when_it_is_loaded(damaged: object) -> None:
    state = used_streams().state_dict()
    state["streams"]["acting"] = damaged
    with pytest.raises((KeyError, TypeError, RuntimeError)):
        RandomStreams(3, CPU).load_state_dict(state)


@pytest.mark.gpu
def test_a_run_that_began_on_a_cpu_goes_on_on_a_gpu() -> None:
    moved = RandomStreams(3, torch.device("cuda"))
    moved.load_state_dict(used_streams().state_dict())
    assert moved.uniform("acting", 5).device.type == "cuda"
