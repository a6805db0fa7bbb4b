"""The world model: its parts, its losses, where gradients go, and imagination state."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests_support import ACTIONS, CPU, image_spaces, random_batch, small_config, small_models, uniform
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from agents import make_models
from configuration.schema import Config
from sub_models.batch import Batch
from sub_models.functions_losses import sample, straight_through
from sub_models.world_models import WorldModel

BOTH = pytest.mark.parametrize("model_type", ["STORM", "GITSTORM"])


def test_sizes_of_the_paper() -> None:
    world_model, agent = make_models(Config(), image_spaces(64, 18), CPU)
    assert sum(p.numel() for p in world_model.parameters()) == pytest.approx(16.5e6, rel=5e-3)
    assert sum(p.numel() for p in agent.parameters()) == pytest.approx(3.4e6, rel=1e-2)
    assert world_model.feature_size == 1536


@pytest.mark.parametrize(
    ("image_size", "channels"), [(16, [4, 8]), (64, [4, 8, 16, 32]), (128, [4, 8, 16, 32, 64])]
)
def test_images_are_halved_down_to_four_pixels(image_size: int, channels: list[int]) -> None:
    config = small_config()
    config.BasicSettings.ImageSize = image_size
    world_model, _ = make_models(config, image_spaces(image_size, ACTIONS), CPU)
    convolutions = [m for m in world_model.encoder.layers if isinstance(m, torch.nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == channels
    assert all(c.bias is None and c.kernel_size == (4, 4) and c.stride == (2, 2) for c in convolutions)
    frames = random_batch(2, 3, image_size=image_size).observation
    posterior = world_model.posterior(frames)
    assert posterior.shape == (2, 3, 4, 5) and posterior.dtype == torch.float32
    index = sample(posterior, uniform(2, 3, 4))
    image = world_model.decode(world_model.one_hot_latent(index))
    assert image.shape == (2, 3, 3, image_size, image_size)


def test_the_decoder_has_a_bias_only_in_its_last_layer() -> None:
    decoder = small_models()[0].decoder
    transposed = [m for m in decoder.layers if isinstance(m, torch.nn.ConvTranspose2d)]
    assert [layer.bias is not None for layer in transposed] == [False, True]
    assert decoder.project.bias is None
    assert isinstance(decoder.layers[-1], torch.nn.ConvTranspose2d), "no output activation"


def test_posterior_depends_on_its_own_frame_only() -> None:
    world_model, _ = small_models()
    frames = random_batch(2, 4).observation
    other = frames.clone()
    other[0, 2] = 255 - other[0, 2]
    change = (world_model.posterior(other) - world_model.posterior(frames)).abs().amax((-1, -2)) > 1e-6
    assert change.nonzero().tolist() == [[0, 2]]
    torch.testing.assert_close(world_model.posterior(frames[0]), world_model.posterior(frames)[0])


def forward(world_model: WorldModel, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Posterior, sampled index and hidden states, as the loss computes them."""
    posterior = world_model.posterior(batch.observation)
    index = sample(posterior, noise[..., : world_model.config.NumLatents])
    return posterior, index, world_model.sequence_model(world_model.one_hot_latent(index), batch.action)


@BOTH
def test_loss_is_made_of_its_parts(model_type: str) -> None:
    world_model, _ = small_models(model_type)
    world_model.config.FreeNats = 0.01  # above it, so that the clip does not hide a mistake
    batch, noise = random_batch(3, 6), uniform(3, 6, world_model.loss_noise_size)
    total, metrics = world_model.loss(batch, noise)
    posterior, index, hidden = forward(world_model, batch, noise)
    latent = world_model.one_hot_latent(index)

    image = batch.observation.float().permute(0, 1, 4, 2, 3) / 255
    reconstruction = (world_model.decode(latent) - image).square().sum((2, 3, 4)).mean()
    reward_logits = world_model.reward_head(hidden).log_softmax(-1)
    reward = -(world_model.two_hot.encode(batch.reward) * reward_logits).sum(-1).mean()
    termination = F.binary_cross_entropy_with_logits(
        world_model.termination_head(hidden)[..., 0], batch.termination
    )
    prediction = world_model.prior.predict(hidden[:, :-1], index[:, 1:], noise[:, 1:, 4:])
    divergence = kl_divergence(Categorical(logits=posterior[:, 1:]), Categorical(logits=prediction.log_probs))
    kl = (divergence * prediction.kl_weight).sum(-1).mean()

    assert kl > 0.01
    counted, unsure = prediction.kl_weight, Categorical(logits=prediction.log_probs).entropy()
    expected = {
        "posterior_entropy": Categorical(logits=posterior).entropy().mean(),
        "prior_entropy": (unsure * counted).sum() / counted.sum(),
        "real_reward": batch.reward.mean(),
        "reconstruction_loss": reconstruction,
        "reward_loss": reward,
        "termination_loss": termination,
        "dynamics_loss": kl,
        "representation_loss": kl,
        "dynamics_real_kl_div": kl,
        "representation_real_kl_div": kl,
        "total_loss": reconstruction + reward + termination + 0.5 * kl + 0.1 * kl,
    }
    for name, value in expected.items():
        torch.testing.assert_close(metrics[name], value.detach(), rtol=1e-4, atol=1e-6, msg=name)
    torch.testing.assert_close(total.detach(), metrics["total_loss"])
    assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())


def divergence_gradients(model_type: str, which: int) -> dict[str, float]:
    """Largest gradient that one of the two KLs leaves in each part of the model."""
    world_model, _ = small_models(model_type)
    batch, noise = random_batch(3, 6), uniform(3, 6, world_model.loss_noise_size)
    posterior, index, hidden = forward(world_model, batch, noise)
    world_model.divergences(posterior, index, hidden, noise[:, 1:, 4:])[which].mean().backward()
    parts = {
        "posterior": world_model.encoder.head,
        "prior": world_model.prior,
        "sequence": world_model.sequence_model,
    }
    return {
        name: max((p.grad.abs().max().item() for p in part.parameters() if p.grad is not None), default=0.0)
        for name, part in parts.items()
    }


@BOTH
def test_dynamics_loss_trains_the_prior_and_representation_loss_the_posterior(model_type: str) -> None:
    dynamics, representation = (divergence_gradients(model_type, which) for which in (0, 1))
    assert dynamics["prior"] > 0 and dynamics["sequence"] > 0 and dynamics["posterior"] == 0
    assert (
        representation["posterior"] > 0 and representation["prior"] == 0 and representation["sequence"] == 0
    )


def test_kl_compares_the_next_posterior_with_the_prior() -> None:
    world_model, _ = small_models()
    batch, noise = random_batch(2, 5), uniform(2, 5, 4)
    posterior, index, hidden = forward(world_model, batch, noise)
    dynamics, _, _ = world_model.divergences(posterior, index, hidden, noise[:, 1:, 4:])
    assert dynamics.shape == (2, 4)
    changed = posterior.clone()
    changed[:, 3] = changed[:, 3].roll(1, -1)  # z_3 is what h_2 predicts
    other, _, _ = world_model.divergences(changed, index, hidden, noise[:, 1:, 4:])
    assert ((other - dynamics).abs().amax(0) > 1e-6).tolist() == [False, False, True, False]


@BOTH
def test_under_one_nat_the_prior_gets_no_gradient(model_type: str) -> None:
    gradients = []
    for free_nats in (1e-3, 1e3):
        world_model, _ = small_models(model_type)
        world_model.config.FreeNats = free_nats
        loss, metrics = world_model.loss(random_batch(2, 5), uniform(2, 5, world_model.loss_noise_size))
        loss.backward()
        gradients.append(max(p.grad.abs().max().item() for p in world_model.prior.parameters()))
        clipped = metrics["dynamics_loss"]
        assert clipped == pytest.approx(max(free_nats, metrics["dynamics_real_kl_div"].item()))
    assert gradients[0] > 0 and gradients[1] == 0


def test_reconstruction_trains_the_encoder_straight_through() -> None:
    world_model, _ = small_models()
    batch, noise = random_batch(2, 4), uniform(2, 4, 4)
    posterior, index, hidden = forward(world_model, batch, noise)
    latent = straight_through(index, posterior).flatten(-2)
    world_model.head_losses(batch, latent, hidden.detach())["reconstruction_loss"].mean().backward()
    assert world_model.encoder.layers[0].weight.grad.abs().max() > 0


def test_pixels_of_what_moves_count_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sprite of one pixel in one of ten pictures; the pixel counts nine times where the sprite is."""
    world_model, _ = small_models()
    world_model.config.MovingWeight, world_model.config.MovingThreshold = 9.0, 0.1
    pictures = torch.full((2, 5, 16, 16, 3), 51, dtype=torch.uint8)  # 0.2
    pictures[1, 2, 3, 1, 0] = 255
    monkeypatch.setattr(world_model, "decode", lambda latent: torch.zeros(2, 5, 3, 16, 16))
    expected = torch.full((2, 5), 768 * 0.04)
    expected[1, 2] = 765 * 0.04 + 9 * (1.0 + 2 * 0.04)
    torch.testing.assert_close(world_model.reconstruction_loss(torch.zeros(2, 5, 1), pictures), expected)


def test_maskgit_is_shown_the_sample_that_the_sequence_model_was_fed() -> None:
    world_model, _ = small_models("GITSTORM")
    fed, shown, masks = [], [], []
    world_model.sequence_model.register_forward_pre_hook(
        lambda module, inputs: fed.append(inputs[0].detach())
    )
    world_model.prior.transformer.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0]))
    world_model.loss(random_batch(3, 6), uniform(3, 6, world_model.loss_noise_size))
    index = fed[0].unflatten(-1, (4, 5)).argmax(-1)[:, 1:].flatten(0, 1)  # of z_{t+1}
    masks.append(shown[0] == 5)
    assert torch.equal(shown[0][~masks[0]], index[~masks[0]])
    assert (~masks[0]).any()


@BOTH
def test_all_randomness_is_an_argument_but_dropout(model_type: str) -> None:
    world_model, _ = small_models(model_type)
    batch, noise = random_batch(2, 5), uniform(2, 5, world_model.loss_noise_size)
    state = torch.get_rng_state()
    first = world_model.loss(batch, noise)[0]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, world_model.loss(batch, noise)[0])
    assert not torch.equal(first, world_model.loss(batch, noise.flip(0))[0])
    world_model.train()
    assert not torch.equal(world_model.loss(batch, noise)[0], world_model.loss(batch, noise)[0])


def test_every_parameter_is_trained() -> None:
    for model_type in ("STORM", "GITSTORM"):
        world_model, _ = small_models(model_type)
        world_model.config.FreeNats = 0.0
        world_model.loss(random_batch(2, 5), uniform(2, 5, world_model.loss_noise_size))[0].backward()
        silent = [name for name, p in world_model.named_parameters() if p.grad is None or not p.grad.any()]
        assert silent == []


def test_heads_decode_reward_and_termination() -> None:
    world_model, _ = small_models()
    hidden = torch.randn(4, 3, 16)
    logits = world_model.reward_head(hidden)
    torch.testing.assert_close(world_model.predict_reward(hidden), world_model.two_hot.decode(logits))
    with torch.no_grad():
        world_model.termination_head[-1].bias.fill_(0)
    expected = (world_model.termination_head(hidden)[..., 0] > 0).float()
    assert torch.equal(world_model.predict_termination(hidden), expected)
    assert 0 < expected.mean() < 1


def test_evaluation_mode_leaves_batchnorm_alone() -> None:
    world_model, _ = small_models()
    before = {name: buffer.clone() for name, buffer in world_model.named_buffers()}
    world_model.loss(random_batch(2, 4), uniform(2, 4, 4))
    assert all(torch.equal(buffer, before[name]) for name, buffer in world_model.named_buffers())
    world_model.train()
    world_model.loss(random_batch(2, 4), uniform(2, 4, 4))
    assert not any(torch.equal(buffer, before[name]) for name, buffer in world_model.named_buffers())


@torch.no_grad()
def test_start_and_step_continue_a_real_context() -> None:
    world_model, _ = small_models()
    batch, noise = random_batch(3, 6), uniform(3, 6, 4)
    _, index, hidden = forward(world_model, batch, noise)
    state = world_model.start(batch.observation[:, :4], batch.action[:, :4], noise[:, :4], horizon=2)
    torch.testing.assert_close(state.hidden, hidden[:, 3])
    for step in (4, 5):
        state = world_model.step(state, world_model.one_hot_latent(index[:, step]), batch.action[:, step])
        torch.testing.assert_close(state.hidden, hidden[:, step], rtol=1e-5, atol=1e-6)


@BOTH
def test_every_epsilon_and_the_depth_of_the_heads_are_settings(model_type: str) -> None:
    whole = Config()
    config = whole.Models
    config.WorldModel.NormEps, config.WorldModel.SequenceNormEps, config.WorldModel.HeadLayers = 0.1, 0.2, 3
    config.Agent.NormEps, config.MaskGit.NormEps = 0.3, 0.4
    whole.JointTrainAgent.ModelType = model_type
    world_model, agent = make_models(whole, image_spaces(64, 3), CPU)
    norms = {name: module.eps for name, module in world_model.named_modules() if hasattr(module, "eps")}
    assert all(eps == 0.4 for name, eps in norms.items() if name.startswith("prior."))
    own = {name: eps for name, eps in norms.items() if not name.startswith("prior.")}
    for name, eps in own.items():
        is_sequence = name.startswith("sequence_model.") and ".mixer." not in name
        assert eps == (0.2 if is_sequence else 0.1), name
    assert {module.eps for module in agent.modules() if hasattr(module, "eps")} == {0.3}
    assert sum(isinstance(layer, torch.nn.ReLU) for layer in world_model.reward_head) == 3
