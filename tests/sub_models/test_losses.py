"""Functions without parameters, against definitions written another way."""

from __future__ import annotations

import math

import pytest
import torch
from tests_support import uniform
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from sub_models.functions_losses import (
    TwoHotSymlog,
    categorical_kl,
    entropy,
    free_nats,
    lambda_return,
    one_hot,
    percentile,
    sample,
    squared_error,
    straight_through,
    symexp,
    symlog,
    unimix_log_probs,
)
from sub_models.image import moving_pixels

MEAN = "symexp_of_mean"


def test_symlog_and_its_inverse() -> None:
    x = torch.tensor([-1e6, -2.0, -1e-3, 0.0, 0.5, 1.0, 1e6])
    expected = [math.copysign(math.log1p(abs(v)), v) for v in x.tolist()]
    torch.testing.assert_close(symlog(x), torch.tensor(expected))
    torch.testing.assert_close(symexp(symlog(x)), x, rtol=1e-5, atol=1e-6)


def test_symexp_has_a_gradient_everywhere() -> None:
    x = torch.tensor([-30.0, -1.0, 1.0, 30.0], requires_grad=True)
    symexp(x).sum().backward()
    torch.testing.assert_close(x.grad, x.detach().abs().exp())


def test_two_hot_bins_span_their_bounds() -> None:
    bins = TwoHotSymlog(255, 20.0, MEAN).bins(torch.device("cpu"))
    assert len(bins) == 255 and bins[0] == -20 and bins[-1] == 20
    torch.testing.assert_close(bins.diff(), torch.full((254,), 40 / 254), rtol=1e-4, atol=0)
    assert TwoHotSymlog(11, 3.0, MEAN).bins(torch.device("cpu"))[-1] == 3, "the bounds are honoured"


@pytest.mark.parametrize(("num_bins", "limit"), [(255, 20.0), (7, 3.0)])
def test_two_hot_of_a_bin_is_that_bin(num_bins: int, limit: float) -> None:
    coding = TwoHotSymlog(num_bins, limit, MEAN)
    weights = coding.encode(symexp(coding.bins(torch.device("cpu")).double()))
    torch.testing.assert_close(weights, torch.eye(num_bins), rtol=0, atol=2e-4)


def test_two_hot_puts_its_weight_on_the_two_neighbours_in_proportion() -> None:
    coding = TwoHotSymlog(5, 2.0, MEAN)  # bins -2, -1, 0, 1, 2
    weights = coding.encode(symexp(torch.tensor([0.25, -1.5, 9.0, -9.0])))
    expected = torch.tensor(
        [[0, 0, 0.75, 0.25, 0], [0.5, 0.5, 0, 0, 0], [0, 0, 0, 0, 1.0], [1.0, 0, 0, 0, 0]]
    )
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-6)


def test_two_hot_round_trip() -> None:
    coding = TwoHotSymlog(255, 20.0, MEAN)
    target = torch.tensor([-1e5, -321.5, -1.0, -0.01, 0.0, 0.3, 1.0, 20.0, 4567.0, 1e6])
    weights = coding.encode(target)
    torch.testing.assert_close(weights.sum(-1), torch.ones(10), rtol=0, atol=2e-5)
    torch.testing.assert_close(coding.decode(weights.log()), target, rtol=1e-4, atol=1e-6)


def test_the_mean_of_symexp_is_unbiased_and_the_symexp_of_the_mean_is_not() -> None:
    plain, unbiased = TwoHotSymlog(127, 8.0, MEAN), TwoHotSymlog(127, 8.0, "mean_of_symexp")
    target = torch.tensor([-2000.0, -0.3, 0.0, 1.0, 7.5, 100.0])
    weights = unbiased.encode(target)
    torch.testing.assert_close(weights.sum(-1), torch.ones(6))
    assert weights.min() >= 0 and ((weights > 1e-6).sum(-1) <= 2).all()
    torch.testing.assert_close(unbiased.decode(weights.log()), target, rtol=1e-4, atol=1e-5)
    outside = unbiased.encode(torch.tensor([-1e6, 1e6]))
    assert outside[0, 0] == outside[1, -1] == 1 and outside.sum() == 2
    rare = (0.9 * unbiased.encode(torch.zeros(1)) + 0.1 * unbiased.encode(torch.tensor([100.0]))).log()
    torch.testing.assert_close(unbiased.decode(rare), torch.tensor([10.0]), rtol=1e-4, atol=0)
    assert plain.decode(rare) < 1


def test_two_hot_loss_is_least_at_the_target() -> None:
    coding = TwoHotSymlog(31, 5.0, MEAN)
    target = torch.tensor([3.7])
    best = coding.encode(target).clamp(min=1e-12).log()
    others = torch.randn(200, 31, generator=torch.Generator().manual_seed(0))
    assert (coding.loss(others, target.expand(200)) > coding.loss(best, target)).all()
    logits = torch.zeros(1, 31, requires_grad=True)
    coding.loss(logits, target).sum().backward()
    torch.testing.assert_close(logits.grad, torch.full((1, 31), 1 / 31) - coding.encode(target))


def test_unimix_mixes_in_one_percent_uniform() -> None:
    logits = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0)) * 20
    log_probs = unimix_log_probs(logits, 0.01)
    torch.testing.assert_close(log_probs.exp(), 0.99 * logits.softmax(-1) + 0.01 / 8)
    assert log_probs.exp().min() >= 0.01 / 8 * (1 - 1e-4)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(3, 4))


def test_half_precision_inputs_are_computed_in_float32() -> None:
    logits = torch.randn(6, 255, generator=torch.Generator().manual_seed(0)).bfloat16()
    coding = TwoHotSymlog(255, 20.0, MEAN)
    assert unimix_log_probs(logits, 0.01).dtype == torch.float32
    torch.testing.assert_close(coding.decode(logits), coding.decode(logits.float()), rtol=0, atol=0)
    target = torch.full((6,), 2.5)
    torch.testing.assert_close(
        coding.loss(logits, target), coding.loss(logits.float(), target), rtol=0, atol=0
    )


def test_kl_and_entropy_against_torch() -> None:
    p, q = (torch.randn(5, 3, 7, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    torch.testing.assert_close(
        categorical_kl(log_p, log_q), kl_divergence(Categorical(logits=p), Categorical(logits=q))
    )
    torch.testing.assert_close(entropy(log_p), Categorical(logits=p).entropy())
    assert categorical_kl(log_p, log_p).abs().max() == 0


def test_free_nats_clips_after_the_mean() -> None:
    below = torch.tensor([0.1, 1.7], requires_grad=True)  # mean 0.9: one element above 1 does not help
    loss = free_nats(below, 1.0)
    loss.backward()
    assert loss == 1 and (below.grad == 0).all()

    above = torch.tensor([0.0, 3.0], requires_grad=True)  # mean 1.5: elements below 1 keep their gradient
    loss = free_nats(above, 1.0)
    loss.backward()
    assert loss == 1.5
    torch.testing.assert_close(above.grad, torch.full((2,), 0.5))


def brute_force_returns(reward, termination, value, gamma, lambda_, shift):  # noqa: ANN001, ANN201
    """λ-returns of one trajectory by their recursion, in plain Python."""
    horizon = len(reward)

    def g(t: int) -> float:
        if t == horizon:
            return value[horizon]
        future = (1 - lambda_) * value[t + shift] + lambda_ * g(t + 1)
        return reward[t] + gamma * (1 - termination[t]) * future

    return [g(t) for t in range(horizon)]


@pytest.mark.parametrize("shift", [0, 1])
def test_lambda_return_against_brute_force(shift: int) -> None:
    generator = torch.Generator().manual_seed(3)
    reward, value = (torch.randn(4, n, generator=generator) for n in (6, 7))
    termination = (torch.rand(4, 6, generator=generator) < 0.3).float()
    assert 0 < termination.sum() < termination.numel()
    returns = lambda_return(reward, termination, value, 0.9, 0.7, shift)
    for row in range(4):
        lists = [x[row].double().tolist() for x in (reward, termination, value)]
        expected = torch.tensor(brute_force_returns(*lists, 0.9, 0.7, shift))
        torch.testing.assert_close(returns[row], expected)


def test_lambda_return_at_its_extremes() -> None:
    generator = torch.Generator().manual_seed(3)
    reward, value = (torch.randn(2, n, generator=generator) for n in (5, 6))
    never = torch.zeros(2, 5)
    one_step = lambda_return(reward, never, value, 0.9, 0.0)
    torch.testing.assert_close(one_step, reward + 0.9 * value[:, 1:])
    monte_carlo = lambda_return(reward, never, value, 0.9, 1.0)
    powers = 0.9 ** torch.arange(5.0)
    torch.testing.assert_close(monte_carlo[:, 0], (reward * powers).sum(1) + 0.9**5 * value[:, 5])


@pytest.mark.parametrize(("share", "rank"), [(0.05, 5), (0.95, 95), (0.001, 1), (1.0, 100)])
def test_percentile_is_the_nth_smallest_counted_from_one(share: float, rank: int) -> None:
    x = torch.randperm(100, generator=torch.Generator().manual_seed(0)).float().view(4, 25) + 1
    assert percentile(x, share) == rank


def test_sample_follows_its_probabilities() -> None:
    probs = torch.tensor([0.5, 0.0, 0.2, 0.05, 0.25])
    draws = sample(probs.log().expand(40_000, 5), uniform(40_000))
    frequencies = torch.bincount(draws, minlength=5) / 40_000
    torch.testing.assert_close(frequencies, probs, rtol=0, atol=0.01)
    assert frequencies[1] == 0


@pytest.mark.parametrize("first", [0, 1])
def test_sample_at_the_edges_of_its_noise(first: int) -> None:
    probs = torch.zeros(6)
    probs[first : first + 3] = torch.tensor([0.3, 0.3, 0.4])  # impossible classes on both sides
    just_below_one = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    assert sample(probs.log(), torch.tensor(0.0)) == first
    assert sample(probs.log(), just_below_one) == first + 2
    for num_classes in (2, 5, 32, 255):
        logits = torch.randn(1000, num_classes, generator=torch.Generator().manual_seed(0))
        assert sample(logits, just_below_one.expand(1000)).max() == num_classes - 1


@pytest.mark.parametrize("weight", [None, 1 + uniform(2, 3, 1, 5, seed=2)], ids=["plain", "weighted"])
def test_squared_error_is_summed_over_what_a_step_observes(weight: Tensor | None) -> None:
    prediction, target = uniform(2, 3, 4, 5).bfloat16().requires_grad_(), uniform(2, 3, 4, 5, seed=1)
    upstream = uniform(2, 3, seed=3)
    squares = (prediction.float() - target).square()
    expected = (squares if weight is None else squares * weight).flatten(2).sum(-1)
    error = squared_error(prediction, target, weight)
    torch.testing.assert_close(error, expected)
    (gradient,) = torch.autograd.grad(error, prediction, upstream)
    torch.testing.assert_close(gradient, *torch.autograd.grad(expected, prediction, upstream))


def test_pixels_of_what_moves_are_found() -> None:
    """A sprite of one pixel in one of ten pictures; the pixel counts where the sprite is, and only there."""
    pictures = torch.full((2, 5, 4, 4, 3), 51, dtype=torch.uint8)  # 0.2
    pictures[1, 2, 3, 1, 0] = 255
    moving = moving_pixels(pictures, 0.1)
    assert moving.shape == (2, 5, 1, 4, 4) and moving.nonzero().tolist() == [[1, 2, 0, 3, 1]]
    assert not moving_pixels(pictures, 0.73).any()  # the mean is 0.28 there
    assert moving_pixels(255 - pictures, 0.71).equal(moving_pixels(pictures, 0.71)) and moving.any()


def test_one_hot() -> None:
    index = torch.tensor([[0, 3], [2, 1]])
    expected = torch.nn.functional.one_hot(index, 4)
    assert torch.equal(one_hot(index, 4), expected.float())
    assert one_hot(index, 4, torch.bfloat16).dtype == torch.bfloat16


def test_straight_through_has_the_gradient_of_the_probabilities() -> None:
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    index = torch.tensor([5, 0, 2])
    through, direct = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    hard = straight_through(index, unimix_log_probs(through, 0.01))
    torch.testing.assert_close(hard, one_hot(index, 6))
    (hard * weight).sum().backward()
    (unimix_log_probs(direct, 0.01).exp() * weight).sum().backward()
    torch.testing.assert_close(through.grad, direct.grad)
    assert through.grad.abs().max() > 0
