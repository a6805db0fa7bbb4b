"""MaskGIT: masking, Draft-and-Revise sampling, and what its samples can express."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import pytest
import torch
from tests_support import small_config, uniform
from torch import Tensor

import sub_models.priors
from configuration.schema import Config, ModelsConfig
from sub_models.attention_blocks import take
from sub_models.functions_losses import one_hot, sample
from sub_models.priors import MaskGITPrior, Prior, make_prior
from sub_models.torch_maskgit.masking import (
    mask_count,
    mask_ratio,
    positions_by_group,
    random_groups,
    random_mask,
)
from sub_models.torch_maskgit.sampling import DraftAndRevise

SCHEDULES = ("cosine", "uniform", "pow2", "pow0.5", "log", "exp")


def gamma(u: float, schedule: str, num_tokens: int) -> float:
    """γ(u) as the schedules are defined, clipped to [1e-6, 1]."""
    bits = math.log2(num_tokens)
    ratio = {
        "cosine": lambda: math.cos(math.pi * u / 2),
        "uniform": lambda: 1 - u,
        "pow2": lambda: 1 - u**2,
        "pow0.5": lambda: 1 - u**0.5,
        "log": lambda: -math.log2(u) / bits if u else math.inf,
        "exp": lambda: 1 - 2 ** (-bits * (1 - u)),
    }[schedule]()
    return min(max(ratio, 1e-6), 1.0)


# Masking.


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_tokens", [4, 8, 32])
def test_mask_count_is_the_ceiling(schedule: str, num_tokens: int) -> None:
    u = torch.linspace(0, 1, 1001)
    expected = torch.tensor([num_tokens * gamma(value, schedule, num_tokens) for value in u.tolist()])
    count = mask_count(u, schedule, num_tokens, 1e-6)
    torch.testing.assert_close(
        mask_ratio(u, schedule, num_tokens, 1e-6) * num_tokens, expected, atol=1e-4, rtol=0
    )
    clear = (expected - expected.round()).abs() > 1e-4  # at whole numbers rounding may go either way
    clear |= expected == num_tokens
    assert clear.float().mean() > 0.9
    assert torch.equal(count[clear], expected[clear].ceil().long())
    assert count.min() == 1 and (count.diff() <= 0).all(), "more progress masks fewer tokens"


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_mask_counts_that_training_meets(schedule: str) -> None:
    """The fully masked input, from which sampling starts, is trained on; exp's formula stops one short."""
    count = mask_count(uniform(20_000), schedule, 8, 1e-6)
    fully = (count == 8).float().mean()
    assert set(count.tolist()) == set(range(1, 8 if schedule == "exp" else 9))
    expected = {"cosine": math.acos(7 / 8) / (math.pi / 2), "uniform": 1 / 8, "log": 2 ** (-7 / 8 * 3)}
    expected |= {"pow2": (1 / 8) ** 0.5, "pow0.5": (1 / 8) ** 2, "exp": 0.0}
    assert fully == pytest.approx(expected[schedule], abs=0.01)


def test_random_mask_is_a_uniform_set_of_the_given_size() -> None:
    count = torch.tensor([1, 2, 3, 4]).repeat(15_000)
    masked = random_mask(count, uniform(60_000, 4))
    assert torch.equal(masked.sum(-1), count)
    pairs = masked[count == 2].float() @ torch.tensor([1.0, 2.0, 4.0, 8.0])
    frequencies = torch.bincount(pairs.long(), minlength=16)[[3, 5, 9, 6, 10, 12]] / 15_000
    torch.testing.assert_close(frequencies, torch.full((6,), 1 / 6), rtol=0, atol=0.015)


@pytest.mark.parametrize(("num_tokens", "num_groups"), [(8, 1), (8, 4), (8, 3), (8, 8), (32, 5)])
def test_random_groups_are_nearly_equal(num_tokens: int, num_groups: int) -> None:
    groups = random_groups(uniform(200, num_tokens), num_groups)
    sizes = torch.stack([(groups == group).sum(-1) for group in range(num_groups)])
    assert sizes.sum(0).eq(num_tokens).all() and sizes.max() - sizes.min() <= 1
    for group, chosen in enumerate(positions_by_group(groups, num_groups)):
        assert torch.zeros_like(groups).scatter(-1, chosen, 1).eq(groups == group).all()
    if num_groups > 1:
        assert len(groups.unique(dim=0)) > 100, "a permutation per sample"


# Draft-and-Revise.


class Recorder:
    """Stands for the model: notes its inputs, and draws the number of the call at every position."""

    def __init__(self, num_classes: int = 64) -> None:
        self.inputs: list[Tensor] = []
        self.num_classes = num_classes

    def __call__(self, tokens: Tensor, positions: Tensor | None) -> Tensor:
        self.inputs.append(tokens.clone())
        index = torch.full_like(tokens if positions is None else positions, len(self.inputs) - 1)
        return one_hot(index, self.num_classes).log()


def test_a_sweep_takes_a_draw_and_with_several_groups_a_permutation() -> None:
    sizes = {(1, 1, 1): 8, (1, 1, 0): 8, (4, 4, 1): 32, (4, 1, 1): 8, (1, 4, 2): 8 + 2 * 16, (8, 2, 0): 16}
    assert {plan: DraftAndRevise(8, *plan).noise_size for plan in sizes} == sizes


@pytest.mark.parametrize(
    "plan", [(8, 8, 1), (4, 4, 1), (4, 4, 3), (3, 5, 2), (8, 2, 0), (1, 4, 2), (4, 1, 1)]
)
def test_each_sweep_touches_each_position_once(plan: tuple[int, int, int]) -> None:
    draw, predict = DraftAndRevise(8, *plan), Recorder()
    noise = uniform(50, draw.noise_size)
    final = draw.draw(predict, 64, noise)
    assert [groups.max() + 1 for groups in draw.groups(noise)] == list(draw.sweeps)
    assert len(predict.inputs) == sum(draw.sweeps)
    assert ((final >= 0) & (final < 64)).all()
    inputs = iter(enumerate(predict.inputs))
    for index, groups in enumerate(draw.sweeps):
        calls = [next(inputs) for _ in range(groups)]
        masked = torch.stack([tokens == 64 for _, tokens in calls])
        first_call = calls[0][0]
        after = predict.inputs[first_call + groups] if index + 1 < len(draw.sweeps) else final
        if index == 0:  # drafting: what is drawn stays visible, group after group
            assert masked[0].all()
            for earlier, later in pairwise(masked):
                assert not (later & ~earlier).any() and (later.sum(-1) < earlier.sum(-1)).all()
        else:  # revising: the groups' masks partition the positions
            assert (masked.sum(0) == 1).all()
            sizes = masked.sum(-1)
            assert sizes.max() - sizes.min() <= 1
        if index == len(draw.sweeps) - 1:
            drawn_by = after - first_call
            assert ((drawn_by >= 0) & (drawn_by < groups)).all(), "every position was drawn in the last sweep"
            assert all((drawn_by == group).any() for group in range(groups))
            assert (drawn_by == draw.groups(noise)[-1]).all()


@pytest.mark.parametrize(
    ("plan", "sweeps"),
    [
        ((1, 1, 1), (1,)),
        ((1, 1, 0), (1,)),
        ((8, 1, 1), (1,)),
        ((4, 1, 3), (1,)),
        ((4, 4, 1), (4, 4)),
        ((4, 1, 0), (4,)),
        ((1, 4, 2), (1, 4, 4)),
    ],
)
def test_sweeps_that_would_be_forgotten_are_not_computed(
    plan: tuple[int, ...], sweeps: tuple[int, ...]
) -> None:
    draw = DraftAndRevise(8, *plan)
    assert draw.sweeps == sweeps
    assert draw.is_joint == (sweeps[-1] > 1)


def naive_draw(plan: tuple[int, int, int], predict, num_tokens: int, mask: int, n: int) -> Tensor:  # noqa: ANN001
    """Draft-and-Revise with every sweep that was asked for, written from its description."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.full((n, num_tokens), mask)
    draft, revise, revisions = plan
    for groups in (draft, *[revise] * revisions):
        order = torch.rand(n, num_tokens, generator=generator).argsort(-1)
        for chosen in order.tensor_split(groups, dim=-1):
            shown = tokens.scatter(-1, chosen, mask)
            drawn = sample(predict(shown), torch.rand(n, num_tokens, generator=generator))
            tokens = tokens.scatter(-1, chosen, drawn.gather(-1, chosen))
    return tokens


@pytest.mark.parametrize("plan", [(3, 1, 1), (2, 1, 2), (1, 1, 1), (3, 3, 1), (2, 3, 0), (1, 2, 2)])
def test_the_distribution_is_that_of_all_sweeps(plan: tuple[int, int, int]) -> None:
    n, num_tokens, num_classes = 30_000, 3, 2
    table = (
        torch.randn(3**num_tokens, num_tokens, num_classes, generator=torch.Generator().manual_seed(1)) * 2
    )

    def predict(tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        logits = table[(tokens * torch.tensor([1, 3, 9])).sum(-1)]
        return logits if positions is None else take(logits, positions)

    def frequencies(tokens: Tensor) -> Tensor:
        return torch.bincount((tokens * torch.tensor([1, 2, 4])).sum(-1), minlength=8) / n

    draw = DraftAndRevise(num_tokens, *plan)
    ours = frequencies(draw.draw(predict, num_classes, uniform(n, draw.noise_size)))
    torch.testing.assert_close(
        ours, frequencies(naive_draw(plan, predict, num_tokens, 2, n)), rtol=0, atol=0.015
    )


@pytest.mark.parametrize("layers", [1, 2])
def test_logits_of_some_tokens_are_those_of_all(layers: int) -> None:
    torch.manual_seed(0)
    models = maskgit_config()
    models.MaskGit.TmfArgs.NumLayers = layers
    transformer = make_maskgit(models).transformer.eval()
    tokens = torch.randint(transformer.num_classes + 1, (5, transformer.num_tokens))
    condition = transformer.condition(torch.randn(5, models.WorldModel.TransformerHiddenDim))
    positions = uniform(5, transformer.num_tokens).argsort(-1)[:, :3]
    everywhere = transformer(tokens, condition)
    expected = torch.stack([logits[chosen] for logits, chosen in zip(everywhere, positions, strict=True)])
    torch.testing.assert_close(transformer(tokens, condition, positions), expected)


# The prior.


def maskgit_config(t_draft: int = 1, t_revise: int = 1, revisions: int = 1) -> ModelsConfig:
    models = small_config("GITSTORM").Models
    models.MaskGit.T_draft, models.MaskGit.T_revise, models.MaskGit.M = t_draft, t_revise, revisions
    return models


def make_maskgit(models: ModelsConfig | None = None) -> MaskGITPrior:
    torch.manual_seed(0)
    models = models or maskgit_config()
    prior = MaskGITPrior(models).eval()
    with torch.no_grad():  # leave the initial region in which all logits are nearly equal
        for parameter in prior.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return prior


def test_drafting_that_is_forgotten_deserves_a_warning() -> None:
    with pytest.warns(UserWarning, match="T_draft=4 has no effect"):
        make_prior(maskgit_config(4, 1, 1), "GITSTORM")
    for plan in ((1, 1, 1), (4, 4, 1), (4, 1, 0)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            make_prior(maskgit_config(*plan), "GITSTORM")


def test_only_masked_positions_count_and_are_hidden() -> None:
    prior = make_maskgit()
    seen = []
    prior.transformer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    hidden, tokens = torch.randn(3, 5, 16), (uniform(3, 5, 4) * 5).long()
    noise = uniform(3, 5, prior.predict_noise_size, seed=1)
    prediction = prior.predict(hidden, tokens, noise)
    kl_weight = prediction.kl_weight
    assert kl_weight.shape == (3, 5, 4) and prediction.log_probs.shape == (3, 5, 4, 5)
    assert torch.equal(kl_weight.sum(-1).long(), mask_count(noise[..., 0], "cosine", 4, 1e-6))
    shown = seen[0].view(3, 5, 4)
    assert (shown[kl_weight == 1] == 5).all() and torch.equal(shown[kl_weight == 0], tokens[kl_weight == 0])
    other = torch.where(kl_weight == 1, (tokens + 1) % 5, tokens)  # what is hidden cannot be known
    assert torch.equal(prior.predict(hidden, other, noise).log_probs, prediction.log_probs)


def test_the_kl_of_all_latents_is_estimated_from_the_masked_ones() -> None:
    models = maskgit_config()
    torch.manual_seed(0)
    masked = make_maskgit(models)
    models.MaskGit.KLOver = "all"
    every = MaskGITPrior(models).eval()
    every.load_state_dict(masked.state_dict())
    hidden, tokens, noise = torch.randn(3, 5, 16), torch.randint(5, (3, 5, 4)), torch.rand(3, 5, 5)
    one, other = (prior.predict(hidden, tokens, noise) for prior in (masked, every))
    assert torch.equal(one.log_probs, other.log_probs)
    count = one.kl_weight.sum(-1, keepdim=True)
    torch.testing.assert_close(other.kl_weight, one.kl_weight * 4 / count)
    assert count.unique().numel() > 1  # so that the two are not one up to a factor


def test_masked_positions_see_visible_ones_both_ways() -> None:
    prior = make_maskgit()
    condition = prior.transformer.condition(torch.randn(1, 16))
    tokens = torch.tensor([[0, 5, 5, 3]])
    before = prior.transformer(tokens, condition)
    for position, value in ((0, 1), (3, 2)):
        other = tokens.clone()
        other[0, position] = value
        change = (prior.transformer(other, condition) - before).abs().amax(-1)[0]
        assert (change > 1e-6).all()


def test_each_token_is_conditioned_on_its_slice_of_the_hidden_state() -> None:
    transformer = make_maskgit().transformer
    hidden = torch.randn(2, 16)
    before = transformer.condition(hidden)
    for position in range(4):
        other = hidden.clone()
        other[:, 4 * position : 4 * position + 4] += 1
        changed = (transformer.condition(other) - before).abs().amax((0, 2)) > 1e-6
        assert changed.tolist() == [index == position for index in range(4)]


def test_conditioned_on_the_whole_each_token_sees_all_of_the_hidden_state_in_its_own_way() -> None:
    config = small_config(model_type="GITSTORM")
    config.Models.MaskGit.Condition = "whole"
    config.Models.WorldModel.TransformerHiddenDim = 18  # not to be cut into 4 slices
    transformer = MaskGITPrior(config.Models).transformer
    hidden = torch.randn(2, 18, requires_grad=True)
    condition = transformer.condition(hidden)
    for token in condition[0].unbind(0):
        (gradient,) = torch.autograd.grad(token.sum(), hidden, retain_graph=True)
        assert gradient[0].all() and not gradient[1].any()
    condition = condition - transformer.position.weight
    assert not torch.isclose(condition[0, 0], condition[0, 1]).any()
    tokens = torch.tensor([[0, 5, 2, 4], [5, 5, 1, 1]])
    assert transformer(tokens, transformer.condition(hidden)).shape == (2, 4, 5)


def test_the_input_layer_is_linear_in_embedding_beside_slice() -> None:
    transformer = make_maskgit().transformer
    hidden, tokens = torch.randn(2, 16), torch.tensor([[0, 5, 2, 4], [5, 5, 1, 1]])
    joined = torch.cat([transformer.token(tokens), hidden.view(2, 4, 4)], dim=-1)
    inputs = []
    transformer.blocks[0].register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    transformer(tokens, transformer.condition(hidden))
    torch.testing.assert_close(inputs[0], transformer.input(joined) + transformer.position.weight)


def test_logits_are_tied_to_the_token_embeddings() -> None:
    transformer = make_maskgit().transformer
    condition = transformer.condition(torch.randn(2, 16))
    tokens = torch.full((2, 4), 5)
    outputs = []
    transformer.vocabulary_norm.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    logits = transformer(tokens, condition)
    torch.testing.assert_close(logits, outputs[0] @ transformer.token.weight[:5].T + transformer.bias)
    assert logits.shape == (2, 4, 5)


def test_maskgit_starts_from_small_tables_and_mixes_uniform_once() -> None:
    prior = make_prior(Config().Models, "GITSTORM")
    transformer = prior.transformer
    assert transformer.token.weight.shape == (33, 128) and transformer.position.weight.shape == (32, 128)
    for table in (transformer.token.weight, transformer.position.weight):
        assert table.std().item() == pytest.approx(0.02, rel=0.1)
    with torch.no_grad():
        transformer.bias[7] = 50.0  # all but certain
        log_probs = prior.predict(torch.zeros(1, 512), torch.zeros(1, 32).long(), uniform(1, 33)).log_probs
    torch.testing.assert_close(log_probs[..., 7].exp(), torch.full((1, 32), 0.99 + 0.01 / 32))


def test_one_pass_sampling_needs_one_pass() -> None:
    for plan, passes in (((1, 1, 1), 1), ((4, 4, 1), 8)):
        prior = make_maskgit(maskgit_config(*plan))
        calls = []
        prior.transformer.register_forward_hook(lambda *arguments, calls=calls: calls.append(1))
        tokens = prior.sample(torch.randn(6, 16), uniform(6, prior.sample_noise_size))
        assert len(calls) == passes and tokens.shape == (6, 4) and tokens.dtype == torch.int64


def test_one_pass_samples_follow_the_predicted_probabilities() -> None:
    prior = make_maskgit()
    hidden = torch.randn(1, 16).expand(20_000, 16)
    tokens = prior.sample(hidden, uniform(20_000, prior.sample_noise_size))
    everything_masked = torch.cat([torch.zeros(1, 1), uniform(1, 4)], dim=-1)
    probs = prior.predict(hidden[:1], torch.zeros(1, 4).long(), everything_masked).log_probs.exp()[0]
    frequencies = one_hot(tokens, 5).mean(0)
    torch.testing.assert_close(frequencies, probs.detach(), rtol=0, atol=0.015)


@pytest.mark.parametrize(("model_type", "plan"), [("STORM", 1), ("GITSTORM", 1), ("GITSTORM", 2)])
def test_draws_are_mixed_with_the_uniform_distribution(model_type: str, plan: int) -> None:
    models = maskgit_config(plan, plan, 1)
    models.WorldModel.Unimix = 0.5
    torch.manual_seed(0)
    prior = make_prior(models, model_type).eval()
    certain = prior.head.bias.view(4, 5)[:, 2] if model_type == "STORM" else prior.transformer.bias[2:3]
    with torch.no_grad():
        certain += 50.0
    hidden = torch.randn(1, 16).expand(20_000, 16)
    tokens = prior.sample(hidden, uniform(20_000, prior.sample_noise_size))
    expected = torch.full((4, 5), 0.1)
    expected[:, 2] += 0.5
    torch.testing.assert_close(one_hot(tokens, 5).mean(0), expected, rtol=0, atol=0.015)
    torch.testing.assert_close(prior.log_probs(hidden[:1])[0].exp(), expected, rtol=0, atol=1e-4)


def test_priors_keep_leading_axes() -> None:
    for model_type in ("STORM", "GITSTORM"):
        prior = make_prior(maskgit_config(), model_type)
        noise = uniform(2, 3, prior.sample_noise_size)
        hidden = torch.randn(2, 3, 16)
        tokens = prior.sample(hidden, noise)
        assert torch.equal(tokens.flatten(0, 1), prior.sample(hidden.flatten(0, 1), noise.flatten(0, 1)))


# What a sample can express: all latents equal one random class. Coherent samples have all
# latents equal; the classes of coherent samples must still be spread evenly.

SIZE = 8


@pytest.fixture
def one_thread() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def joint_config() -> ModelsConfig:
    models = Config().Models
    models.WorldModel.NumLatents = models.WorldModel.NumClasses = SIZE
    models.WorldModel.TransformerHiddenDim = 64
    models.MaskGit.VocabDim = models.MaskGit.TmfArgs.EmbedDim = models.MaskGit.TmfArgs.MlpDim = 64
    models.MaskGit.TmfArgs.NumLayers = 2
    return models


def train_on_equal_latents(model_type: str, steps: int = 800, batch: int = 32) -> Prior:
    """A prior trained on latents that all equal one random class."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    prior = make_prior(joint_config(), model_type)
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-3, fused=True)
    hidden = torch.zeros(batch, 64)
    for _ in range(steps):
        tokens = torch.randint(SIZE, (batch, 1), generator=generator).expand(batch, SIZE)
        noise = torch.rand(batch, prior.predict_noise_size, generator=generator)
        prediction = prior.predict(hidden, tokens, noise)
        nats = -prediction.log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        optimizer.zero_grad()
        (nats * prediction.kl_weight).sum(-1).mean().backward()
        optimizer.step()
    return prior


@torch.no_grad()
def coherence_and_entropy(prior: Prior, plan: tuple[int, int, int] | None = None) -> tuple[float, float]:
    """Share of coherent ones among 2,000 samples, and the entropy of their classes over ln C."""
    if plan is not None:
        prior.plan = DraftAndRevise(SIZE, *plan)
    tokens = prior.sample(torch.zeros(2_000, 64), uniform(2_000, prior.sample_noise_size, seed=1))
    coherent = (tokens == tokens[:, :1]).all(-1)
    share = torch.bincount(tokens[coherent, 0], minlength=SIZE) / max(1, int(coherent.sum()))
    entropy = -torch.special.xlogy(share, share).sum() / math.log(SIZE)
    return coherent.float().mean().item(), entropy.item()


@pytest.mark.usefixtures("one_thread")
def test_maskgit_learns_a_joint_distribution() -> None:
    prior = train_on_equal_latents("GITSTORM")
    coherence, entropy = coherence_and_entropy(prior, (8, 8, 1))
    assert coherence >= 0.8 and entropy >= 0.9
    assert coherence_and_entropy(prior, (4, 4, 1))[0] >= 0.5
    assert coherence_and_entropy(prior, (1, 1, 1))[0] <= 0.05, "one pass draws the latents independently"
    assert coherence_and_entropy(prior, (8, 1, 1))[0] <= 0.05, "and so does a last sweep of one group"


@pytest.mark.usefixtures("one_thread")
def test_a_factorised_prior_cannot() -> None:
    assert coherence_and_entropy(train_on_equal_latents("STORM"))[0] <= 0.05


@pytest.mark.usefixtures("one_thread")
def test_with_a_floor_the_samples_collapse(monkeypatch: pytest.MonkeyPatch) -> None:
    def floor_count(u: Tensor, schedule: str, num_tokens: int, minimum: float) -> Tensor:
        return (num_tokens * mask_ratio(u, schedule, num_tokens, minimum)).floor().long().clamp(1)

    monkeypatch.setattr(sub_models.priors, "mask_count", floor_count)
    _, entropy = coherence_and_entropy(train_on_equal_latents("GITSTORM", steps=400), (8, 8, 1))
    assert entropy < 0.9
