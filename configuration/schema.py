"""Every setting of a run: name, type, default, meaning, allowed values and symbol, in one line each.

One dataclass per section of a YAML file. Here, and nowhere else, stand the numbers of the algorithm that can
be changed. A resumed run keeps its `fixed` settings; the `free` ones may change. `python train.py --help`
prints this file as a table. Section and key names are those of the STORM release.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from configuration.keys import COMPILE, Key, Range, Texts, fixed, free, section
from utils import DEVICE_PATTERN

STEPS = Range(1, 10**12)
BATCH = Range(1, 2**20)
WIDTH = Range(1, 2**16)
AT_LEAST_2 = Range(2, 2**16)
COUNT = Range(1, 1_024)
FRAMES = Range(1, 2**31 - 1)
UNIT = Range(0, 1)
RATE = Range(0, 1, "[)")
SHARE = Range(0, 1, "(]")
POSITIVE = Range(0, ends="()")
NOT_NEGATIVE = Range(0, ends="[)")
AT_MOST_1 = Range(-math.inf, 1, "(]")
BIN_LIMIT = Range(0, 80, "(]")  # symexp(80) is the largest that float32 holds with room
CLASS = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"  # module:Class, of one's own
MODEL_TYPES = Texts("STORM", "GITSTORM", CLASS, meaning="STORM, GITSTORM or module:Class")
CODERS = Texts("auto", CLASS, meaning="auto or module:Class")
TASKS = Texts("JointTrainAgent", "VideoPrediction")
MIXERS = Texts("concat", "concat_attention", "latent_attention")
POWERS = r"pow(0\.0*[1-9]\d{0,5}|[1-9]\d{0,2}(\.\d{1,6})?)"
SCHEDULES = Texts("cosine", "uniform", "log", "exp", POWERS, meaning="cosine, uniform, log, exp or pow<d>")
COUNTED = Texts("masked", "all")
CONDITIONS = Texts("slice", "whole")
SCALES = Texts("returns", "advantages")
DECODINGS = Texts("symexp_of_mean", "mean_of_symexp")
OBSERVATIONS = Texts("auto", "image", "vector")
DEVICES = Texts(DEVICE_PATTERN, meaning="auto, cuda, cuda:N, mps or cpu")
# Keys of the releases' files that mean nothing here, and why.
IGNORED = {
    "hydra": "runs are named by BasicSettings.n",
    "Models.WorldModel.InChannels": "an observation tells its channels",
    "Models.MaskGit.VocabSize": "it is Models.WorldModel.NumClasses",
}


@dataclass
class BasicSettings:
    """The run: its name, game, device and precision."""

    Seed: int = fixed(0, "seed of every random stream of the run", Range(0, 2**31 - 1))
    ImageSize: int = fixed(64, "side of the square observation in pixels, 4·2^n", Range(16, 1_024))
    ReplayBufferOnGPU: bool = free(True, "keep the replay buffer on the training device")
    n: str | None = free(None, "run name; unset: <Game>-<config>-seed_<seed>")
    config_path: str = free("config_files/STORM.yaml", "YAML file the run starts from, or its name there")
    env_name: str = fixed("ALE/Boxing-v5", "Gymnasium id, module:id or dm_control/<domain>-<task>-v0")
    trajectory_path: str | None = free(None, "demonstrations (.npz, STORM's .pkl), or clips of video")
    pretrained_path: str | None = fixed(
        None, "weights to begin with: a run, an agent of assets/agents, a folder or a file"
    )
    device: str = free("auto", "where the networks run", DEVICES)
    silent: bool = free(False, "hide the progress bar")
    ReleaseQuirks: bool = fixed(False, "restore the STORM release's known deviations from the paper")
    Precision: str = free("auto", "of matrix products", Texts("auto", "bfloat16", "float16", "float32"))
    LossScale: float = free(4.0, "initial loss scale in float16, which adapts it", POSITIVE)
    Compile: str = free("auto", "compiled kernels and CUDA graphs; auto: on a GPU", COMPILE)
    GraphWarmUpCalls: int = free(3, "eager calls of a step before it is captured as a CUDA graph", COUNT)
    NumThreads: int = free(0, "CPU threads of PyTorch; 0: one for small networks, else all", Range(0, 1_024))
    Loggers: list[str] = free(["tensorboard", "jsonl"], "where metrics are logged")
    Restart: bool = free(False, "archive an existing run of this name and start over")


@dataclass
class EnvironmentConfig:
    """The game as the agent plays it, and what is done about its faults."""

    Observation: str = fixed("auto", "as the environment returns it, drawn, or flattened", OBSERVATIONS)
    ActionRepeat: int | None = fixed(None, "its steps per action; unset: 2 of dm_control, else 1", COUNT)
    Arguments: dict[str, Any] = fixed({}, "further arguments of gymnasium.make")
    FullActionSpace: bool = fixed(False, "all 18 actions of an Atari game, not only those that it uses")
    FrameSkip: int = fixed(4, "emulator frames per agent step", COUNT)
    StickyActions: float = fixed(0.25, "probability that a frame repeats the previous action", UNIT)
    MaxEpisodeFrames: int = fixed(108_000, "emulator frames until an episode is truncated", FRAMES)
    LifeLossTermination: bool = fixed(True, "a lost life is a termination for learning")
    ClipRewards: bool = fixed(False, "learn from the sign of rewards; returns are reported whole")
    RewardScale: float = fixed(1.0, "factor of the rewards learned from, their signs if clipped", POSITIVE)
    StepTimeout: float = free(0.0, "seconds a worker may take for a step; 0 waits for ever", NOT_NEGATIVE)
    MaxFaults: int = free(3, "environment faults in a row after which the run stops", STEPS)


@dataclass
class JointTrainAgent:
    """The training loop: how much is played, learned, imagined, logged and saved."""

    ModelType: str = fixed("STORM", "the prior: STORM's linear layer, or a MaskGIT", MODEL_TYPES)
    WorldModelClass: str = fixed("auto", "a subclass of WorldModel, with losses of its own", CODERS)
    SampleMaxSteps: int = free(102_000, "environment steps of the run", STEPS)
    BufferMaxLength: int = fixed(100_000, "replay capacity in steps, all environments together", STEPS)
    BufferWarmUp: int = fixed(1_024, "uniformly random steps before learning starts", STEPS)
    NumEnvs: int = fixed(1, "parallel environments", COUNT, "N")
    BatchSize: int = fixed(16, "windows per world-model update", BATCH, "B")
    DemonstrationBatchSize: int = fixed(4, "demonstration windows added to them", Range(0, 2**20))
    BatchLength: int = fixed(64, "steps per window", AT_LEAST_2, "L")
    ImagineBatchSize: int = fixed(1_024, "imagined trajectories per agent update", BATCH)
    ImagineDemonstrationBatchSize: int = fixed(256, "demonstration contexts added to them", Range(0, 2**20))
    ImagineContextLength: int = fixed(8, "real steps before imagination starts", WIDTH)
    ImagineBatchLength: int = fixed(16, "imagination horizon", WIDTH, "H")
    ActingContextLength: int = fixed(16, "real steps the policy remembers when acting", WIDTH)
    ActBlindly: bool = fixed(False, "choose actions on a prior sample, without the present frame")
    UpdateAfterStoring: bool = fixed(False, "update once a step is stored, not while the emulator makes it")
    TrainDynamicsEverySteps: int = fixed(1, "environment steps per world-model update", STEPS)
    TrainAgentEverySteps: int = fixed(1, "environment steps per agent update", STEPS)
    UseDemonstration: bool = fixed(False, "mix demonstrations into both updates")
    SaveEverySteps: int = free(5_000, "environment steps between checkpoints", STEPS)
    SaveEverySeconds: float = free(300.0, "seconds between resumable states besides; 0: off", NOT_NEGATIVE)
    LogEverySteps: int = free(100, "environment steps between logged training metrics", STEPS)
    EvalEverySteps: int = free(0, "environment steps between evaluations; 0 is off", Range(0, 10**12))
    MaxBadUpdates: int = free(20, "non-finite updates in a row after which the run stops", STEPS)


@dataclass
class WorldModelConfig:
    """Encoder, sequence model, heads and loss of the world model."""

    StemChannels: int = fixed(32, "channels of the encoder's first convolution; each next one doubles", WIDTH)
    Encoder: str = fixed("auto", "sees observations; auto: by their kind", CODERS)
    Decoder: str = fixed("auto", "draws observations; auto: by their kind", CODERS)
    VectorHiddenDim: int = fixed(512, "width of the encoder and decoder of vectors", WIDTH)
    VectorLayers: int = fixed(3, "their hidden layers", COUNT)
    StateMixer: str = fixed("concat", "how a step's latents and action become one token", MIXERS)
    NumLatents: int = fixed(32, "categorical latent variables", WIDTH, "K")
    NumClasses: int = fixed(32, "classes of each", AT_LEAST_2, "C")
    Unimix: float = fixed(0.01, "share of the uniform distribution in every categorical", RATE)
    TransformerMaxLength: int = fixed(64, "learned positions of the sequence model", AT_LEAST_2)
    TransformerHiddenDim: int = fixed(512, "width of the sequence model", WIDTH, "D")
    TransformerNumLayers: int = fixed(2, "blocks of the sequence model", COUNT)
    TransformerNumHeads: int = fixed(8, "attention heads of the sequence model", COUNT)
    FeedForwardRatio: int = fixed(2, "feed-forward width over D", COUNT)
    Dropout: float = fixed(0.1, "dropout of the sequence model, in training only", RATE)
    SequenceNormEps: float = fixed(1e-6, "epsilon of the sequence model's norms after the mixer", POSITIVE)
    NormEps: float = fixed(1e-5, "epsilon of BatchNorm and of the other LayerNorms", POSITIVE)
    HeadLayers: int = fixed(2, "hidden layers of the reward and termination heads", COUNT)
    RewardBins: int = fixed(255, "bins of the two-hot reward head", AT_LEAST_2)
    RewardDecoding: str = fixed("symexp_of_mean", "of the bins' symlog values, when it is unsure", DECODINGS)
    BinLimit: float = fixed(20.0, "two-hot bins span symlog values in [-limit, limit]", BIN_LIMIT)
    ReconstructionWeight: float = fixed(1.0, "weight of the squared error of observations", NOT_NEGATIVE)
    MovingWeight: float = fixed(1.0, "weight in it of moving pixels, a sprite's; 1: as others", POSITIVE)
    MovingThreshold: float = fixed(0.1, "moving: so far from a batch's mean picture, of 1", RATE)
    DynamicsWeight: float = fixed(0.5, "weight of KL[sg posterior || prior]", NOT_NEGATIVE, "beta_1")
    RepresentationWeight: float = fixed(0.1, "weight of KL[posterior || sg prior]", NOT_NEGATIVE, "beta_2")
    FreeNats: float = fixed(1.0, "KL below which it gives no gradient", NOT_NEGATIVE)
    LearningRate: float = fixed(1e-4, "Adam step size", NOT_NEGATIVE)
    AdamEps: float = fixed(1e-8, "Adam epsilon", POSITIVE)
    MaxGradNorm: float = fixed(1000.0, "gradient-norm clip", POSITIVE)


@dataclass
class AgentConfig:
    """Actor and critic."""

    NumLayers: int = fixed(2, "hidden layers of actor and critic", COUNT)
    HiddenDim: int = fixed(512, "their width", WIDTH)
    NormEps: float = fixed(1e-5, "epsilon of their LayerNorms", POSITIVE)
    Gamma: float = fixed(0.985, "discount", UNIT, "gamma")
    Lambda: float = fixed(0.95, "mixing of the λ-return", UNIT, "lambda")
    EntropyCoef: float = fixed(3e-4, "weight of the policy entropy", NOT_NEGATIVE, "eta")
    MinStd: float = fixed(0.1, "least standard deviation of a continuous action", POSITIVE)
    MaxStd: float = fixed(1.0, "largest standard deviation of a continuous action", POSITIVE)
    StdShift: float = fixed(2.0, "added before the sigmoid of the deviation", Range(-math.inf, ends="()"))
    ValueBins: int = fixed(255, "bins of the two-hot critic", AT_LEAST_2)
    BinLimit: float = fixed(20.0, "two-hot bins span symlog values in [-limit, limit]", BIN_LIMIT)
    SlowCriticDecay: float = fixed(0.98, "decay of the slow critic's weight average", UNIT, "sigma")
    ReturnDecay: float = fixed(0.99, "decay of the return-percentile averages", UNIT)
    ReturnPercentileLow: float = fixed(0.05, "lower percentile of the return range", SHARE)
    ReturnPercentileHigh: float = fixed(0.95, "upper percentile of the return range", SHARE)
    ScaleOf: str = fixed("returns", "what the range is of that an advantage is divided by", SCALES)
    ReturnScaleFloor: float = fixed(1.0, "smallest return scale an advantage is divided by", POSITIVE)
    LearningRate: float = fixed(3e-5, "Adam step size", NOT_NEGATIVE)
    AdamEps: float = fixed(1e-5, "Adam epsilon", POSITIVE)
    MaxGradNorm: float = fixed(100.0, "joint gradient-norm clip of actor and critic", POSITIVE)


@dataclass
class MaskGitTransformerConfig:
    """The bidirectional transformer of the MaskGIT prior."""

    EmbedDim: int = fixed(128, "width of the bidirectional transformer", WIDTH)
    MlpDim: int = fixed(128, "hidden width of its MLPs", WIDTH)
    NumHeads: int = fixed(8, "attention heads", COUNT)
    NumLayers: int = fixed(4, "blocks", COUNT)
    Dropout: float = fixed(0.0, "dropout after attention and MLP, in training only", RATE)
    AttentionDropout: float = fixed(0.0, "dropout of the attention probabilities, in training only", RATE)


@dataclass
class MaskGitConfig:
    """The MaskGIT prior and its sampling plan; GITSTORM only."""

    VocabDim: int = fixed(128, "width of the token embeddings", WIDTH)
    T_revise: int = fixed(1, "groups of each revise sweep", WIDTH, "T_revise")
    T_draft: int = fixed(1, "groups of the draft sweep", WIDTH, "T_draft")
    M: int = fixed(1, "number of revise sweeps", Range(0, 1_024), "M")
    MaskSchedule: str = fixed("cosine", "share of masked latents", SCHEDULES, "gamma(u)")
    MinMaskRatio: float = fixed(1e-6, "schedules are clipped to [MinMaskRatio, 1]", SHARE)
    Condition: str = fixed("slice", "of the hidden state a latent sees its slice, or all of it", CONDITIONS)
    KLOver: str = fixed("masked", "KL: sum over masked latents, or (TECO) their mean times K: all", COUNTED)
    NormEps: float = fixed(1e-5, "epsilon of its LayerNorms", POSITIVE)
    InitStd: float = fixed(0.02, "standard deviation of the initial token and position tables", NOT_NEGATIVE)
    TmfArgs: MaskGitTransformerConfig = section(MaskGitTransformerConfig)


@dataclass
class ModelsConfig:
    """The networks."""

    WorldModel: WorldModelConfig = section(WorldModelConfig)
    Agent: AgentConfig = section(AgentConfig)
    MaskGit: MaskGitConfig = section(MaskGitConfig)


@dataclass
class Evaluation:
    """How checkpoints are scored, filmed and judged."""

    NumEpisodes: int = free(20, "episodes per checkpoint", Range(1, 10**6))
    NumEnvs: int = free(5, "parallel environments of an evaluation", COUNT)
    VideoWindows: int = free(4, "trajectories side by side in an imagination video", COUNT)
    Greedy: bool = free(False, "take the most likely action instead of a sampled one")
    PredictionWindows: int = free(64, "held-out windows that a world-model report is made on", COUNT)
    PredictionHorizon: int = free(15, "steps it predicts, or fewer where training windows are shorter", COUNT)


@dataclass
class VideoPrediction:
    """Training on recorded clips, and how predictions of those held out are judged."""

    HeldOutShare: float = fixed(0.1, "share of the clips that is never trained on", RATE)
    Context: int = free(8, "frames that are shown", WIDTH, "c")
    Horizon: int = free(16, "frames that are predicted after them", WIDTH, "h")
    Clips: int = free(256, "held-out windows that a Fréchet distance is taken of", AT_LEAST_2)
    Groups: int = free(1, "groups of so many windows that are judged", COUNT)


@dataclass
class Health:
    """Bounds of the health findings; they change nothing in training."""

    MinEntropy: float = free(0.02, "entropy of posterior or policy, over the uniform's, below: look", UNIT)
    MaxEntropy: float = free(0.98, "entropy of the posterior, over the uniform's, above: look", UNIT)
    MaxRewardGap: float = free(0.5, "relative gap of imagined and real reward, above: look", NOT_NEGATIVE)
    RewardScale: float = free(0.01, "reward per step below which gaps are relative to this", NOT_NEGATIVE)
    RewardSteps: int = free(1000, "latest steps per environment whose mean reward is the real one", STEPS)
    MinExplained: float = free(0.0, "explained share of the returns' variance, below: look", AT_MOST_1)


@dataclass
class Config:
    """A whole configuration, one section of YAML per field."""

    Task: str = fixed("JointTrainAgent", "agent and world model, or the latter alone on clips", TASKS)
    BasicSettings: BasicSettings = section(BasicSettings)
    Environment: EnvironmentConfig = section(EnvironmentConfig)
    JointTrainAgent: JointTrainAgent = section(JointTrainAgent)
    Models: ModelsConfig = field(default_factory=lambda: ModelsConfig())  # with what is registered by then
    Evaluation: Evaluation = section(Evaluation)
    VideoPrediction: VideoPrediction = section(VideoPrediction)
    Health: Health = section(Health)


def register_section(name: str, cls: type) -> None:
    """Add the dataclass `cls` as section `name`, "Models.<Any>", so that a new model brings its settings.

    Fields may be plain (`Width: int = 64`) or made by `fixed` and `free`, with a range and a meaning.
    They are then checked, listed by --help and saved like all others; a Config made afterwards has them
    as `config.Models.<Any>`. Raise ValueError if the name is taken, or no name of a section of Models.
    """
    global ModelsConfig
    last = name.removeprefix("Models.")
    if not name.startswith("Models.") or not last.isidentifier() or last in ModelsConfig.__dataclass_fields__:
        raise ValueError(f"{name}: must be Models.<Any>, a section that is not there yet")
    fields = [(last, cls, section(cls))]
    ModelsConfig = dataclasses.make_dataclass("ModelsConfig", fields, bases=(ModelsConfig,))
    ModelsConfig.__module__ = __name__  # so that configurations can be pickled
    schema.cache_clear()


@functools.lru_cache(maxsize=1)
def schema() -> dict[str, Key]:
    """Every setting by its dotted name, in the order of the schema."""
    return dict(keys_of(Config()))


def keys_of(values: Any, prefix: str = "") -> Iterator[tuple[str, Key]]:
    """Yield every setting of a dataclass with default `values` by its dotted name."""
    hints = typing.get_type_hints(type(values))
    for each in dataclasses.fields(values):
        name, default, hint = f"{prefix}{each.name}", getattr(values, each.name), hints[each.name]
        if dataclasses.is_dataclass(default):
            yield from keys_of(default, f"{name}.")
            continue
        may_be_null = type(None) in typing.get_args(hint)
        kind = typing.get_args(hint)[0] if may_be_null else hint
        yield name, Key(typing.get_origin(kind) or kind, may_be_null, default, **each.metadata)
