"""GuardedOptimizer: Adam with clipping, and updates that a bad number cannot poison."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import Tensor, nn

from compute.execution import Execution
from compute.optimization import GuardedOptimizer
from configuration.schema import BasicSettings

LOSS_SCALE = 65_536.0
LEARNING_RATE, EPS = 1e-2, 1e-5


def make_network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).train()


def make_optimizer(
    network: nn.Module,
    clip: float = 0.5,
    scale_loss: bool = False,
    rate: float = LEARNING_RATE,
    eps: float = EPS,
) -> GuardedOptimizer:
    settings = BasicSettings(
        Precision="float16" if scale_loss else "float32", LossScale=LOSS_SCALE, Compile="never"
    )
    execution = Execution(settings, torch.device("cpu"))
    execution.autocast = lambda function: function  # the scaler alone is meant
    return GuardedOptimizer(network, functools.partial(loss_of, network), rate, eps, clip, execution)


def loss_of(network: nn.Module, number: int, factor: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(number))
    return network(x).square().mean() * (1 + number) * factor, {}


def update(optimizer: GuardedOptimizer, number: int, factor: float = 1.0) -> Tensor:
    return optimizer.update(number, factor)["updated"]


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
        metrics = optimizer.update(number)
        adam.zero_grad()
        loss_of(plain, number)[0].backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), clip)
        adam.step()
        assert metrics["updated"] == 1 and (norm > clip) == (clip < 1)
        torch.testing.assert_close(metrics["gradient_norm"], norm, rtol=1e-5, atol=0)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(("scale_loss", "fused"), [(False, True), (True, True), (False, False)])
@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
@pytest.mark.parametrize("earlier", [0, 3])
def test_a_bad_update_leaves_no_trace(earlier: int, factor: float, scale_loss: bool, fused: bool) -> None:
    network = make_network()
    optimizer = make_optimizer(network, scale_loss=scale_loss)
    if not fused:  # as on a device whose fused Adam skips nothing
        optimizer._fused = False
        optimizer.adam = torch.optim.Adam(network.parameters(), LEARNING_RATE, eps=EPS)
    for number in range(earlier):
        update(optimizer, number)
    before = everything(network, optimizer)
    assert update(optimizer, earlier, factor) == 0
    after = everything(network, optimizer)
    for name, value in after.items():  # Adam makes its averages, zero, at the first update
        assert torch.equal(value, before.get(name, torch.zeros_like(value))), name
    assert optimizer.bad_streak == 1 and optimizer.bad_total == 1
    assert update(optimizer, earlier) == 1, "the next good one counts"
    assert not torch.equal(network[0].weight, before["0.weight"])
    assert optimizer.bad_streak == 0 and optimizer.bad_total == 1


def test_skipping_a_bad_update_is_as_if_it_had_not_been_asked_for() -> None:
    with_bad, without = make_network(), make_network()
    first, second = make_optimizer(with_bad), make_optimizer(without)
    for number in range(4):
        update(first, number)
        update(second, number)
        update(first, 9, float("nan"))
    for name, value in everything(with_bad, first).items():
        assert torch.equal(value, everything(without, second)[name]), name


def test_a_bad_gradient_under_a_finite_loss_counts_as_bad() -> None:
    network = make_network()
    optimizer = make_optimizer(network)
    before, weight, losses = copy.deepcopy(network.state_dict()), network[3].weight, []

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        bad = 0 * (weight - weight.detach()).abs().sqrt().sum()  # its gradient is 0·∞
        losses.append(loss_of(network, 0)[0] + bad)
        return losses[0], {}

    optimizer._loss = loss
    metrics = optimizer.update()
    assert torch.isfinite(losses[0]) and metrics["updated"] == 0 and metrics["bad_updates"] == 1
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert optimizer.bad_parameters() == ["3.weight"]


def test_float16_losses_are_scaled() -> None:
    network = make_network()
    optimizer = make_optimizer(network, scale_loss=True)
    scale = optimizer.scaler.get_scale()
    assert scale == LOSS_SCALE and not make_optimizer(network).scaler.is_enabled()
    update(optimizer, 0)
    assert optimizer.scaler.get_scale() == scale
    before = everything(network, optimizer)
    assert update(optimizer, 1, 1e36) == 0, "overflows once it is scaled"
    assert optimizer.scaler.get_scale() == scale / 2
    assert all(torch.equal(value, before[name]) for name, value in everything(network, optimizer).items())


def test_the_scale_comes_down_until_half_precision_holds_the_gradients() -> None:
    network = make_network()
    optimizer = make_optimizer(network, scale_loss=True)
    finite = []

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast("cpu", torch.float16):
            return loss_of(network, 0)[0].float() * 50, {}

    optimizer._loss = loss
    for _ in range(12):
        finite.append(bool(optimizer.update()["updated"]))
    assert not finite[0] and all(finite[-3:]) and optimizer.bad_streak == 0


def test_only_parameters_that_require_gradients_move() -> None:
    network = make_network()
    network[0].requires_grad_(False)
    optimizer = make_optimizer(network)
    before = copy.deepcopy(network.state_dict())
    update(optimizer, 0)
    moved = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"1.weight", "1.bias", "3.weight", "3.bias"}


@pytest.mark.parametrize("scale_loss", [False, True])
def test_a_saved_optimizer_continues(scale_loss: bool) -> None:
    network = make_network()
    optimizer = make_optimizer(network, scale_loss=scale_loss)
    for number in range(3):
        update(optimizer, number)
    update(optimizer, 3, float("nan"))
    other = make_network(seed=1)
    continued = make_optimizer(other, scale_loss=scale_loss)
    other.load_state_dict(network.state_dict())
    continued.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert continued.bad_streak == 1 and continued.bad_total == 1
    assert continued.scaler.get_scale() == optimizer.scaler.get_scale()
    for number in range(4, 7):
        update(optimizer, number)
        update(continued, number)
    for name, value in everything(network, optimizer).items():
        assert torch.equal(value, everything(other, continued)[name]), name


def test_the_learning_rate_is_that_of_the_configuration_not_of_the_file() -> None:
    network = make_network()
    saved = make_optimizer(network).state_dict()
    other = make_optimizer(network, rate=0.5, eps=1e-3)
    other.load_state_dict(saved)
    assert other.adam.param_groups[0]["lr"] == 0.5 and other.adam.param_groups[0]["eps"] == 1e-3
