"""Every key changes what it promises, and nothing else.

`PROBES` says of each key of four sections: another value, what that changes of all that
`key_effects` observes, and the settings under which it does (the key means nothing under others).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from key_effects import BASE, ENV, IMAGES, VECTORS, Effects, atari, evaluating, learning, running
from tiny_runs import train

from configuration.loading import apply_overrides
from configuration.schema import Config, schema
from configuration.spaces import Spaces

SECTIONS = ("Models", "JointTrainAgent", "Environment", "Evaluation")
GIT = ("JointTrainAgent.ModelType=GITSTORM",)
TWO_RATES = ("Dropout=0.2", "AttentionDropout=0.4")
DEMONSTRATED = ("JointTrainAgent.UseDemonstration=true",)
TRAJECTORY = "demonstration.npz"

# What follows from what.
STEP = {"world model's update"}
PRIOR = {"KL", "dynamics loss", "representation loss", "total loss"} | STEP
HEADS = {"reward loss", "termination loss", "total loss", "imagined rewards"} | STEP
HIDDEN = {"imagination", "acting"} | PRIOR | HEADS
LATENT = {"reconstruction loss"} | HIDDEN
SHAPED = {"world model", "initial weights"}
AGENT_STEP = {"agent's update", "slow critic's update"}
ACTOR_LOSS = {"agent's policy loss", "agent's total loss"} | AGENT_STEP
SCALE = {"return scale", "divisor"} | ACTOR_LOSS
RETURNS = {"returns", "agent's value loss", "agent's slow_value loss"} | SCALE
POLICY = {"acting", "imagination", "imagined rewards", "agent's entropy loss"} | ACTOR_LOSS
AGENT = {"agent", "initial weights"} | RETURNS | POLICY
RECONSTRUCTION = {"reconstruction loss", "total loss"} | STEP
REWARD = {"reward loss", "imagined rewards", "total loss"} | STEP
DRAWS = {"imagination", "imagined rewards"}
MASKGIT = {"prior"} | PRIOR | DRAWS
STORED = {"observations", "rewards", "ends"}
GAME = {"game", "game's rewards", "game's ends", "game's episodes"}
TIMES = {"random steps", "chosen steps", "batches", "contexts"}
EVALUATED = {"evaluations", "evaluation seeds"}
LENGTH = {"outcome", "states", "checkpoints", "videos", "logs"} | STORED | TIMES - {"random steps"}
PLAY = {"observations", "rewards", "ends", "episodes"}
# What a resumed run may change: what is written down, filmed and scored.
SCORED = {"scored episodes", "scored num_envs", "scored greedy"}
JUDGED = {"judged windows", "judged steps", "judgement", "video's size"}
HARMLESS = {"logs", "videos", "checkpoints", "states"} | EVALUATED | SCORED | JUDGED
# And when it ends, or goes on after a fault.
ENDURED = {"outcome", "faults"}


@dataclass(frozen=True)
class Probe:
    """Another value of a key, what it changes, and what else must be set for that; which spaces it is for."""

    value: object
    changes: set[str]
    given: tuple[str, ...] = ()
    spaces: Spaces = IMAGES


PROBES = {
    "Models.WorldModel.StemChannels": Probe(3, SHAPED | LATENT),
    "Models.WorldModel.Encoder": Probe("key_effects:OtherEncoder", LATENT),
    "Models.WorldModel.Decoder": Probe("key_effects:OtherDecoder", RECONSTRUCTION),
    "Models.WorldModel.VectorHiddenDim": Probe(8, SHAPED | LATENT, spaces=VECTORS),
    "Models.WorldModel.VectorLayers": Probe(2, SHAPED | LATENT, spaces=VECTORS),
    "Models.WorldModel.StateMixer": Probe("concat_attention", SHAPED | HIDDEN),
    "Models.WorldModel.NumLatents": Probe(8, {"prior"} | SHAPED | LATENT | AGENT),
    "Models.WorldModel.NumClasses": Probe(6, {"prior"} | SHAPED | LATENT | AGENT),
    "Models.WorldModel.Unimix": Probe(0.4, {"prior"} | LATENT),
    "Models.WorldModel.TransformerMaxLength": Probe(18, SHAPED | STEP),
    "Models.WorldModel.TransformerHiddenDim": Probe(20, {"prior"} | SHAPED | HIDDEN | AGENT),
    "Models.WorldModel.TransformerNumLayers": Probe(2, SHAPED | HIDDEN | {"dropouts"}),
    "Models.WorldModel.TransformerNumHeads": Probe(4, HIDDEN),
    "Models.WorldModel.FeedForwardRatio": Probe(3, SHAPED | HIDDEN),
    "Models.WorldModel.Dropout": Probe(0.3, STEP | {"dropouts"}),
    "Models.WorldModel.SequenceNormEps": Probe(0.1, HIDDEN),
    "Models.WorldModel.NormEps": Probe(0.1, LATENT),
    "Models.WorldModel.HeadLayers": Probe(1, SHAPED | HEADS),
    "Models.WorldModel.RewardBins": Probe(17, SHAPED | REWARD),
    "Models.WorldModel.BinLimit": Probe(5, REWARD),
    "Models.WorldModel.RewardDecoding": Probe("mean_of_symexp", REWARD),
    "Models.WorldModel.ReconstructionWeight": Probe(0.5, {"total loss"} | STEP),
    "Models.WorldModel.MovingWeight": Probe(9, RECONSTRUCTION),
    "Models.WorldModel.MovingThreshold": Probe(0.3, RECONSTRUCTION, ("Models.WorldModel.MovingWeight=9",)),
    "Models.WorldModel.DynamicsWeight": Probe(0.9, {"total loss"} | STEP),
    "Models.WorldModel.RepresentationWeight": Probe(0.9, {"total loss"} | STEP),
    "Models.WorldModel.FreeNats": Probe(50, {"dynamics loss", "representation loss", "total loss"} | STEP),
    "Models.WorldModel.LearningRate": Probe(1e-2, STEP),
    "Models.WorldModel.AdamEps": Probe(0.5, STEP),
    "Models.WorldModel.MaxGradNorm": Probe(0.1, STEP),
    "Models.Agent.NumLayers": Probe(2, AGENT),
    "Models.Agent.HiddenDim": Probe(20, AGENT),
    "Models.Agent.NormEps": Probe(3, RETURNS | POLICY),
    "Models.Agent.Gamma": Probe(0.5, RETURNS),
    "Models.Agent.Lambda": Probe(0.5, RETURNS),
    "Models.Agent.EntropyCoef": Probe(0.5, {"agent's total loss"} | AGENT_STEP),
    "Models.Agent.MinStd": Probe(0.3, POLICY, spaces=VECTORS),
    "Models.Agent.MaxStd": Probe(2, POLICY, spaces=VECTORS),
    "Models.Agent.StdShift": Probe(0, POLICY, spaces=VECTORS),
    "Models.Agent.ValueBins": Probe(17, {"agent", "initial weights"} | RETURNS),
    "Models.Agent.BinLimit": Probe(5, RETURNS),
    "Models.Agent.SlowCriticDecay": Probe(0.5, {"slow critic's update"}),
    "Models.Agent.ReturnDecay": Probe(0.5, SCALE),
    "Models.Agent.ReturnPercentileLow": Probe(0.3, SCALE),
    "Models.Agent.ReturnPercentileHigh": Probe(0.7, SCALE),
    "Models.Agent.ScaleOf": Probe("advantages", SCALE),
    "Models.Agent.ReturnScaleFloor": Probe(100, {"divisor"} | ACTOR_LOSS),
    "Models.Agent.LearningRate": Probe(1e-2, AGENT_STEP),
    "Models.Agent.AdamEps": Probe(0.5, AGENT_STEP),
    "Models.Agent.MaxGradNorm": Probe(0.01, AGENT_STEP),
    "Models.MaskGit.VocabDim": Probe(20, SHAPED | MASKGIT, GIT),
    "Models.MaskGit.T_revise": Probe(2, DRAWS, GIT),
    "Models.MaskGit.T_draft": Probe(2, DRAWS, (*GIT, "Models.MaskGit.M=0")),
    "Models.MaskGit.M": Probe(2, DRAWS, (*GIT, "Models.MaskGit.T_draft=4", "Models.MaskGit.T_revise=4")),
    "Models.MaskGit.MaskSchedule": Probe("uniform", PRIOR, GIT),
    "Models.MaskGit.MinMaskRatio": Probe(1, PRIOR, GIT),
    "Models.MaskGit.Condition": Probe("whole", SHAPED | MASKGIT, GIT),
    "Models.MaskGit.KLOver": Probe("all", PRIOR, GIT),
    "Models.MaskGit.NormEps": Probe(0.1, MASKGIT, GIT),
    "Models.MaskGit.InitStd": Probe(0.5, {"initial weights"}, GIT),
    "Models.MaskGit.TmfArgs.EmbedDim": Probe(20, SHAPED | MASKGIT, GIT),
    "Models.MaskGit.TmfArgs.MlpDim": Probe(20, SHAPED | MASKGIT, GIT),
    "Models.MaskGit.TmfArgs.NumHeads": Probe(4, {"prior"} | PRIOR, GIT),
    "Models.MaskGit.TmfArgs.NumLayers": Probe(2, SHAPED | MASKGIT, GIT),
    "Models.MaskGit.TmfArgs.Dropout": Probe(0.3, STEP | {"dropouts"}, GIT),
    "Models.MaskGit.TmfArgs.AttentionDropout": Probe(0.3, STEP | {"dropouts"}, GIT),
    "JointTrainAgent.ModelType": Probe("GITSTORM", SHAPED | MASKGIT),
    "JointTrainAgent.WorldModelClass": Probe("key_effects:OtherWorldModel", {"total loss"} | STEP),
    "JointTrainAgent.SampleMaxSteps": Probe(38, LENGTH),
    "JointTrainAgent.BufferMaxLength": Probe(26, {"replay"} | STORED),
    "JointTrainAgent.BufferWarmUp": Probe(18, TIMES),
    "JointTrainAgent.NumEnvs": Probe(
        2, {"environments", "seeds", "acting", "replay"} | TIMES | PLAY | EVALUATED
    ),
    "JointTrainAgent.BatchSize": Probe(3, {"batches"}),
    "JointTrainAgent.DemonstrationBatchSize": Probe(3, {"batches"}, DEMONSTRATED),
    "JointTrainAgent.BatchLength": Probe(9, {"batches"}),
    "JointTrainAgent.ImagineBatchSize": Probe(3, {"contexts"}),
    "JointTrainAgent.ImagineDemonstrationBatchSize": Probe(3, {"contexts"}, DEMONSTRATED),
    "JointTrainAgent.ImagineContextLength": Probe(5, {"contexts", "videos"}),
    "JointTrainAgent.ImagineBatchLength": Probe(4, {"horizon", "videos"} | DRAWS),
    "JointTrainAgent.ActingContextLength": Probe(5, {"acting", "acting context"}),
    "JointTrainAgent.ActBlindly": Probe(True, {"acting"}),
    "JointTrainAgent.UpdateAfterStoring": Probe(True, {"batches", "contexts"}),
    "JointTrainAgent.TrainDynamicsEverySteps": Probe(3, {"batches"}),
    "JointTrainAgent.TrainAgentEverySteps": Probe(4, {"contexts"}),
    "JointTrainAgent.UseDemonstration": Probe(True, {"batches", "contexts"}),
    "JointTrainAgent.SaveEverySteps": Probe(10, {"checkpoints", "states", "videos"}),
    "JointTrainAgent.SaveEverySeconds": Probe(1e-9, {"states"}),
    "JointTrainAgent.LogEverySteps": Probe(10, {"logs"}),
    "JointTrainAgent.EvalEverySteps": Probe(10, {"evaluations", "evaluation seeds"}),
    "JointTrainAgent.MaxBadUpdates": Probe(
        2, (LENGTH | EVALUATED) - {"logs"}, ("Models.WorldModel.LearningRate=1e30",)
    ),
    "Environment.Observation": Probe("vector", {"observations", "videos", "game's actions"} | GAME),
    "Environment.ActionRepeat": Probe(2, PLAY | GAME),
    "Environment.Arguments": Probe("{pay: 5}", {"rewards", "episodes", "game's actions"} | GAME),
    "Environment.FullActionSpace": Probe(True, {"game's actions", "game"}),
    "Environment.FrameSkip": Probe(3, GAME),
    "Environment.StickyActions": Probe(0.9, GAME - {"game's episodes"}),
    "Environment.MaxEpisodeFrames": Probe(80, GAME),
    "Environment.LifeLossTermination": Probe(False, {"ends", "game's ends"}),
    "Environment.ClipRewards": Probe(True, {"rewards", "game's rewards"}),
    "Environment.RewardScale": Probe(0.5, {"rewards", "game's rewards"}),
    "Environment.StepTimeout": Probe(
        1, {"faults", "seeds", "random steps"} | PLAY, (ENV("Slow"), "Environment.StepTimeout=30")
    ),
    "Environment.MaxFaults": Probe(
        2, {"random steps", "replay", "faults", "seeds"} | EVALUATED | LENGTH | PLAY, (ENV("Stumbling"),)
    ),
    "Evaluation.NumEpisodes": Probe(3, {"evaluations", "scored episodes"}),
    "Evaluation.NumEnvs": Probe(2, {"evaluations", "evaluation seeds", "scored num_envs"}),
    "Evaluation.VideoWindows": Probe(3, {"videos", "video's size"}),
    "Evaluation.Greedy": Probe(True, {"evaluations", "scored greedy", "judgement"}),
    "Evaluation.PredictionWindows": Probe(5, {"judged windows", "judgement"}),
    "Evaluation.PredictionHorizon": Probe(2, {"judged steps", "judgement"}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a short run "run", and a demonstration."""
    folder = tmp_path_factory.mktemp("keys")
    random = np.random.default_rng(0)
    demonstration = {
        "obs": random.integers(256, size=(40, 16, 16, 3), dtype=np.uint8),
        "action": random.integers(3, size=40),
        "reward": random.normal(size=40),
        "done": np.zeros(40),
    }
    np.savez(folder / TRAJECTORY, **demonstration)
    result = train(folder, "run", *BASE, "JointTrainAgent.EvalEverySteps=0", "Evaluation.PredictionWindows=4")
    assert result.code == 0, result.error
    return folder


class Observer:
    """Observes configurations, each once."""

    def __init__(self, folder: Path, scratch: Callable[[], Path]) -> None:
        self.folder, self.scratch = folder, scratch
        self.seen: dict[tuple[object, ...], Effects] = {}

    def __call__(self, section: str, spaces: Spaces, *overrides: str) -> Effects:
        key = (section, spaces, overrides)
        if key not in self.seen:
            self.seen[key] = self._observe(*key)
        return self.seen[key]

    def _observe(self, section: str, spaces: Spaces, overrides: tuple[str, ...]) -> Effects:
        trajectory = f"BasicSettings.trajectory_path={self.folder / TRAJECTORY}"
        config = apply_overrides(Config(), [*BASE, trajectory, *overrides])
        seen = learning(config, spaces)
        if section != "Models":
            seen |= running(config, self.scratch())
        if section == "Environment":
            seen |= atari(config)
        if section == "Evaluation":
            seen |= evaluating(self.folder, *overrides)
        return seen


@pytest.fixture(scope="module")
def observe(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Observer:
    return Observer(folder, lambda: tmp_path_factory.mktemp("run"))


def keys(*sections: str) -> list[str]:
    return [name for name in schema() if name.split(".")[0] in sections]


@pytest.mark.parametrize("key", keys(*SECTIONS))
def test_a_key_changes_what_it_promises_and_nothing_else(observe: Observer, key: str) -> None:
    assert key in PROBES, "a new key brings a line of its own in PROBES"
    probe, section = PROBES[key], key.split(".")[0]
    before = observe(section, probe.spaces, *probe.given)
    after = observe(section, probe.spaces, *probe.given, f"{key}={probe.value}")
    assert {name for name in before if before[name] != after[name]} == probe.changes


def test_every_probe_is_of_a_key() -> None:
    assert PROBES.keys() == set(keys(*SECTIONS))


OF_SOME = [key for key in keys("Models") if PROBES[key].given or PROBES[key].spaces is VECTORS]


@pytest.mark.parametrize("key", OF_SOME)
def test_a_model_key_means_nothing_to_another_model(observe: Observer, key: str) -> None:
    assert observe("Models", IMAGES) == observe("Models", IMAGES, f"{key}={PROBES[key].value}")


@pytest.mark.parametrize("key", keys(*SECTIONS))
def test_a_resumed_run_may_change_what_does_not_change_what_is_learned(key: str) -> None:
    changes = PROBES[key].changes
    assert schema()[key].may_change == (changes <= HARMLESS or bool(changes & ENDURED))


def test_dropout_is_at_three_places_of_each_block(observe: Observer) -> None:
    rates = ("Models.WorldModel.Dropout=0.3", *(f"Models.MaskGit.TmfArgs.{rate}" for rate in TWO_RATES))
    layers = ("Models.WorldModel.TransformerNumLayers=2", "Models.MaskGit.TmfArgs.NumLayers=3")
    assert observe("Models", IMAGES, *layers, *rates)["dropouts"] == {0.3: 2 * 3}
    assert observe("Models", IMAGES, *GIT, *layers, *rates)["dropouts"] == {0.3: 2 * 3, 0.2: 3 * 2, 0.4: 3}
