"""What to look at while a run learns."""

from __future__ import annotations

import numpy as np

from configuration.schema import Config


def health(
    metrics: dict[str, float], config: Config, policy_entropies: tuple[float, float]
) -> dict[str, str]:
    """Return what to look at while training, each as "ok (…)" or "look (…)".

    Args:
        metrics: means of the training metrics by tag. config: of the run.
        policy_entropies: least and most that the policy's entropy can be, in nats.

    Returns:
        The finding by subject: KL, posterior, policy, reward, value; none before both models were updated.
    """
    if not {"WorldModel/posterior_entropy", "ActorCritic/entropy_loss"} <= metrics.keys():
        return {}
    limits = config.Health
    kl = metrics["WorldModel/dynamics_real_kl_div"]
    posterior = metrics["WorldModel/posterior_entropy"] / np.log(config.Models.WorldModel.NumClasses)
    least, most = policy_entropies
    entropy = metrics["ActorCritic/entropy_loss"]
    policy = (entropy - least) / (most - least) if most > least else 1.0  # fixed
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
        "policy": (policy > limits.MinEntropy, f"entropy {policy:.0%} of the most"),
        "reward": (gap < limits.MaxRewardGap, f"imagined {imagined:.3f}, real {real:.3f} a step"),
        "value": (explained > limits.MinExplained, f"explains {explained:.0%} of the returns"),
    }
    return {subject: f"{'ok' if good else 'look'} ({text})" for subject, (good, text) in findings.items()}
