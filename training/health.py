"""What to look at while a run learns."""

from __future__ import annotations

import numpy as np

from configuration.schema import Config


def health(metrics: dict[str, float], config: Config, num_actions: int) -> dict[str, str]:
    """What to look at while training, each as "ok (…)" or "look (…)".

    Args:
        metrics: the latest training metrics by tag. config: of the run. num_actions: A.

    Returns:
        The finding by subject: KL, posterior, policy, reward, value.
    """
    limits = config.Health
    kl = metrics["WorldModel/dynamics_real_kl_div"]
    posterior = metrics["WorldModel/posterior_entropy"] / np.log(config.Models.WorldModel.NumClasses)
    policy = metrics["ActorCritic/entropy_loss"] / np.log(max(2, num_actions))
    imagined, real = metrics["ActorCritic/imagined_reward"], metrics["replay_buffer/recent_reward"]
    explained = metrics["ActorCritic/value_explained"]
    gap = abs(imagined - real) / max(abs(real), abs(imagined), limits.RewardScale)
    free = config.Models.WorldModel.FreeNats
    findings = {
        "KL": (kl > free, f"{kl:.2f} nats, free {free:g}"),
        "posterior": (
            limits.MinEntropy < posterior < limits.MaxEntropy,
            f"entropy {posterior:.0%} of uniform",
        ),
        "policy": (policy > limits.MinEntropy, f"entropy {policy:.0%} of uniform"),
        "reward": (gap < limits.MaxRewardGap, f"imagined {imagined:.3f}, real {real:.3f} a step"),
        "value": (explained > limits.MinExplained, f"explains {explained:.0%} of the returns"),
    }
    return {subject: f"{'ok' if good else 'look'} ({text})" for subject, (good, text) in findings.items()}
