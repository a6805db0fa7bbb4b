"""GuardedOptimizer: Adam with clipping, and updates that a bad number cannot poison."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from compute.optimization import GuardedOptimizer

LOSS_SCALE = 65_536.0
LEARNING_RATE, EPS = 1e-2, 1e-5


def make_network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).train()


def make_optimizer(network: nn.Module, clip: float = 0.5, scale_loss: bool = False) -> GuardedOptimizer:
    arguments = (LEARNING_RATE, EPS, clip, scale_loss, LOSS_SCALE)
    return GuardedOptimizer(network, list(network.parameters()), *arguments)


def loss_of(network: nn.Module, number: int) -> Tensor:
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(number))
    return network(x).square().mean() * (1 + number)


def update(network: nn.Module, optimizer: GuardedOptimizer, number: int, factor: float = 1.0) -> Tensor:
    before = optimizer.remember()
    return optimizer.step(loss_of(network, number) * factor, before)[0]


def everything(network: nn.Module, optimizer: GuardedOptimizer) -> dict[str, Tensor]:
    """Weights, buffers and Adam's state, by name."""
    adam = optimizer.adam.state_dict()["state"]
    moments = {f"adam.{index}.{name}": value for index, own in adam.items() for name, value in own.items()}
    return copy.deepcopy({**network.state_dict(), **moments})


@pytest.mark.parametrize("clip", [0.05, 1e6])
@pytest.mark.parametrize("scale_loss", [False, True])
def test_equals_adam_after_clipping(clip: float, scale_loss: bool) -> None:
    ours, plain = make_network(), make_network()
    optimizer = make_optimizer(ours, clip, scale_loss)
    adam = torch.optim.Adam(plain.parameters(), lr=LEARNING_RATE, eps=EPS)
    for number in range(6):
        before = optimizer.remember()
        finite, metrics = optimizer.step(loss_of(ours, number), before)
        adam.zero_grad()
        loss_of(plain, number).backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), clip)
        adam.step()
        assert finite == 1 and (norm > clip) == (clip < 1)
        torch.testing.assert_close(metrics["gradient_norm"], norm, rtol=1e-5, atol=0)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("scale_loss", [False, True])
@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
@pytest.mark.parametrize("earlier", [0, 3])
def test_a_bad_update_leaves_no_trace(earlier: int, factor: float, scale_loss: bool) -> None:
    network = make_network()
    optimizer = make_optimizer(network, scale_loss=scale_loss)
    for number in range(earlier):
        update(network, optimizer, number)
    before = everything(network, optimizer)
    assert update(network, optimizer, earlier, factor) == 0
    after = everything(network, optimizer)
    for name, value in after.items():  # Adam makes its averages, zero, at the first update
        assert torch.equal(value, before.get(name, torch.zeros_like(value))), name
    assert optimizer.bad_streak == 1 and optimizer.bad_total == 1
    assert update(network, optimizer, earlier) == 1, "the next good one counts"
    assert not torch.equal(network[0].weight, before["0.weight"])
    assert optimizer.bad_streak == 0 and optimizer.bad_total == 1


def test_skipping_a_bad_update_is_as_if_it_had_not_been_asked_for() -> None:
    with_bad, without = make_network(), make_network()
    first, second = make_optimizer(with_bad), make_optimizer(without)
    for number in range(4):
        update(with_bad, first, number)
        update(without, second, number)
        update(with_bad, first, 9, float("nan"))
    for name, value in everything(with_bad, first).items():
        assert torch.equal(value, everything(without, second)[name]), name


def test_a_bad_gradient_under_a_finite_loss_counts_as_bad() -> None:
    network = make_network()
    optimizer = make_optimizer(network)
    before, buffers = copy.deepcopy(network.state_dict()), optimizer.remember()
    weight = network[3].weight
    loss = loss_of(network, 0) + 0 * (weight - weight.detach()).abs().sqrt().sum()  # its gradient is 0·∞
    assert torch.isfinite(loss)
    finite, metrics = optimizer.step(loss, buffers)
    assert finite == 0 and metrics["bad_updates"] == 1
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert optimizer.bad_parameters() == ["3.weight"]


def test_float16_losses_are_scaled() -> None:
    network = make_network()
    optimizer = make_optimizer(network, scale_loss=True)
    scale = optimizer.scaler.get_scale()
    assert scale == LOSS_SCALE and not make_optimizer(network).scaler.is_enabled()
    update(network, optimizer, 0)
    assert optimizer.scaler.get_scale() == scale
    before = everything(network, optimizer)
    assert update(network, optimizer, 1, 1e36) == 0, "overflows once it is scaled"
    assert optimizer.scaler.get_scale() == scale / 2
    assert all(torch.equal(value, before[name]) for name, value in everything(network, optimizer).items())


def test_the_scale_comes_down_until_half_precision_holds_the_gradients() -> None:
    network = make_network()
    optimizer = make_optimizer(network, scale_loss=True)
    finite = []
    for _ in range(12):
        buffers = optimizer.remember()
        with torch.autocast("cpu", torch.float16):
            loss = loss_of(network, 0).float() * 50
        finite.append(bool(optimizer.step(loss, buffers)[0]))
    assert not finite[0] and all(finite[-3:]) and optimizer.bad_streak == 0


def test_only_the_given_parameters_move() -> None:
    network = make_network()
    optimizer = GuardedOptimizer(network, list(network[3].parameters()), LEARNING_RATE, EPS, 1.0, False)
    before = copy.deepcopy(network.state_dict())
    update(network, optimizer, 0)
    moved = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"3.weight", "3.bias"}


@pytest.mark.parametrize("scale_loss", [False, True])
def test_a_saved_optimizer_continues(scale_loss: bool) -> None:
    network = make_network()
    optimizer = make_optimizer(network, scale_loss=scale_loss)
    for number in range(3):
        update(network, optimizer, number)
    update(network, optimizer, 3, float("nan"))
    other = make_network(seed=1)
    continued = make_optimizer(other, scale_loss=scale_loss)
    other.load_state_dict(network.state_dict())
    continued.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert continued.bad_streak == 1 and continued.bad_total == 1
    assert continued.scaler.get_scale() == optimizer.scaler.get_scale()
    for number in range(4, 7):
        update(network, optimizer, number)
        update(other, continued, number)
    for name, value in everything(network, optimizer).items():
        assert torch.equal(value, everything(other, continued)[name]), name


def test_the_learning_rate_is_that_of_the_configuration_not_of_the_file() -> None:
    network = make_network()
    saved = make_optimizer(network).state_dict()
    other = GuardedOptimizer(network, list(network.parameters()), 0.5, 1e-3, 1.0, False)
    other.load_state_dict(saved)
    assert other.adam.param_groups[0]["lr"] == 0.5 and other.adam.param_groups[0]["eps"] == 1e-3
