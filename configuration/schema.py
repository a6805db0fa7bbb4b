"""Every setting of a run: its name, type, default and meaning.

One dataclass per section of a YAML file. This is the only place where a number of the
algorithm is written; everything else receives it from here. `python train.py --help`
prints this file as a table. Section and key names are those of the STORM release.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def key(default: Any, meaning: str, symbol: str = "") -> Any:
    """A dataclass field carrying its own help: `meaning`, and its `symbol` in the papers."""
    return field(default=default, metadata={"help": meaning, "symbol": symbol})


def section(cls: type) -> Any:
    """A nested section whose defaults are those of its dataclass."""
    return field(default_factory=cls)


@dataclass
class BasicSettings:
    """The run: its name, game, device and precision."""

    Seed: int = key(0, "seed of every random stream of the run")
    ImageSize: int = key(64, "side of the square observation in pixels; 4·2^n with n >= 2")
    ReplayBufferOnGPU: bool = key(True, "keep the replay buffer on the training device")
    n: str | None = key(None, "run name; unset or *-experiment becomes <Game>-<config>-seed_<seed>")
    config_path: str = key("config_files/STORM.yaml", "YAML file the run starts from")
    env_name: str = key("ALE/Boxing-v5", "Gymnasium id with an image observation and discrete actions")
    trajectory_path: str | None = key(None, "demonstrations (.npz or STORM's .pkl), read if UseDemonstration")
    pretrained_path: str | None = key(None, "checkpoint file or folder that initialises the weights")
    device: str = key("auto", "auto, cuda, cuda:N, mps or cpu")
    silent: bool = key(False, "hide the progress bar")
    ReleaseQuirks: bool = key(False, "restore the STORM release's known deviations from the paper")
    Precision: str = key("auto", "auto, bfloat16, float16 or float32")
    LossScale: float = key(4.0, "initial loss scale in float16, which adapts it")
    Compile: str = key("auto", "auto, never or always: compiled kernels and CUDA graphs (auto: on a GPU)")
    GraphWarmUpCalls: int = key(3, "eager calls of a step before it is captured as a CUDA graph")
    NumThreads: int = key(0, "CPU threads of PyTorch; 0 leaves its choice")
    Restart: bool = key(False, "archive an existing run of this name and start over")


@dataclass
class Environment:
    """The game as the agent plays it, and what is done about its faults."""

    FrameSkip: int = key(4, "emulator frames per agent step")
    StickyActions: float = key(0.25, "probability that a frame repeats the previous action")
    MaxEpisodeFrames: int = key(108_000, "emulator frames after which an episode is truncated")
    LifeLossTermination: bool = key(True, "a lost life is a termination for learning")
    ClipRewards: bool = key(False, "learn from the sign of rewards; returns are reported whole")
    StepTimeout: float = key(0.0, "seconds a worker may take for one step; 0 waits for ever")
    MaxFaults: int = key(3, "environment faults in a row after which the run stops")


@dataclass
class JointTrainAgent:
    """The training loop: how much is played, learned, imagined, logged and saved."""

    ModelType: str = key("STORM", "STORM (MLP prior) or GITSTORM (MaskGIT prior)")
    SampleMaxSteps: int = key(102_000, "environment steps of the run")
    BufferMaxLength: int = key(100_000, "replay capacity in steps, all environments together")
    BufferWarmUp: int = key(1_024, "uniformly random steps before learning starts")
    NumEnvs: int = key(1, "parallel environments", "N")
    BatchSize: int = key(16, "windows per world-model update", "B")
    DemonstrationBatchSize: int = key(4, "demonstration windows added to them")
    BatchLength: int = key(64, "steps per window", "L")
    ImagineBatchSize: int = key(1_024, "imagined trajectories per agent update")
    ImagineDemonstrationBatchSize: int = key(256, "imagined trajectories that start from demonstrations")
    ImagineContextLength: int = key(8, "real steps before imagination starts")
    ImagineBatchLength: int = key(16, "imagination horizon", "H")
    ActingContextLength: int = key(16, "real steps the policy remembers when acting")
    TrainDynamicsEverySteps: int = key(1, "environment steps per world-model update")
    TrainAgentEverySteps: int = key(1, "environment steps per agent update")
    UseDemonstration: bool = key(False, "mix demonstrations into both updates")
    SaveEverySteps: int = key(5_000, "environment steps between checkpoints")
    SaveEverySeconds: float = key(0.0, "seconds between resumable states besides those; 0 is off")
    LogEverySteps: int = key(100, "environment steps between logged training metrics")
    EvalEverySteps: int = key(0, "environment steps between evaluations while training; 0 is off")
    MaxBadUpdates: int = key(20, "non-finite updates in a row after which the run stops")


@dataclass
class WorldModel:
    """Encoder, sequence model, heads and loss of the world model."""

    InChannels: int = key(3, "image channels")
    StemChannels: int = key(32, "channels of the encoder's first convolution; each next one doubles")
    NumLatents: int = key(32, "categorical latent variables", "K")
    NumClasses: int = key(32, "classes of each", "C")
    Unimix: float = key(0.01, "share of the uniform distribution in every categorical")
    TransformerMaxLength: int = key(64, "learned positions of the sequence model")
    TransformerHiddenDim: int = key(512, "width of the sequence model", "D")
    TransformerNumLayers: int = key(2, "blocks of the sequence model")
    TransformerNumHeads: int = key(8, "attention heads of the sequence model")
    FeedForwardRatio: int = key(2, "feed-forward width over D")
    Dropout: float = key(0.1, "dropout of the sequence model, in training only")
    SequenceNormEps: float = key(1e-6, "epsilon of the sequence model's norms after the state mixer")
    NormEps: float = key(1e-5, "epsilon of BatchNorm and of the other LayerNorms")
    HeadLayers: int = key(2, "hidden layers of the reward and termination heads")
    RewardBins: int = key(255, "bins of the two-hot reward head")
    BinLimit: float = key(20.0, "two-hot bins span symlog values in [-limit, limit]")
    DynamicsWeight: float = key(0.5, "weight of KL[sg posterior || prior]", "beta_1")
    RepresentationWeight: float = key(0.1, "weight of KL[posterior || sg prior]", "beta_2")
    FreeNats: float = key(1.0, "KL below which it gives no gradient")
    LearningRate: float = key(1e-4, "Adam step size")
    AdamEps: float = key(1e-8, "Adam epsilon")
    MaxGradNorm: float = key(1000.0, "gradient-norm clip")


@dataclass
class Agent:
    """Actor and critic."""

    NumLayers: int = key(2, "hidden layers of actor and critic")
    HiddenDim: int = key(512, "their width")
    NormEps: float = key(1e-5, "epsilon of their LayerNorms")
    Gamma: float = key(0.985, "discount", "gamma")
    Lambda: float = key(0.95, "mixing of the λ-return", "lambda")
    EntropyCoef: float = key(3e-4, "weight of the policy entropy", "eta")
    ValueBins: int = key(255, "bins of the two-hot critic")
    BinLimit: float = key(20.0, "two-hot bins span symlog values in [-limit, limit]")
    SlowCriticDecay: float = key(0.98, "decay of the slow critic's weight average", "sigma")
    ReturnDecay: float = key(0.99, "decay of the return-percentile averages")
    ReturnPercentileLow: float = key(0.05, "lower percentile of the return range")
    ReturnPercentileHigh: float = key(0.95, "upper percentile of the return range")
    ReturnScaleFloor: float = key(1.0, "smallest return scale an advantage is divided by")
    LearningRate: float = key(3e-5, "Adam step size")
    AdamEps: float = key(1e-5, "Adam epsilon")
    MaxGradNorm: float = key(100.0, "joint gradient-norm clip of actor and critic")


@dataclass
class MaskGitTransformer:
    """The bidirectional transformer of the MaskGIT prior."""

    EmbedDim: int = key(128, "width of the bidirectional transformer")
    MlpDim: int = key(128, "hidden width of its MLPs")
    NumHeads: int = key(8, "attention heads")
    NumLayers: int = key(4, "blocks")
    Dropout: float = key(0.0, "dropout after attention and MLP, in training only")
    AttentionDropout: float = key(0.0, "dropout of the attention probabilities, in training only")


@dataclass
class MaskGit:
    """The MaskGIT prior and its sampling plan; GITSTORM only."""

    VocabSize: int | None = key(None, "must equal NumClasses; unset takes it", "C")
    VocabDim: int = key(128, "width of the token embeddings")
    T_revise: int = key(1, "groups of each revise sweep", "T_revise")
    T_draft: int = key(1, "groups of the draft sweep", "T_draft")
    M: int = key(1, "number of revise sweeps", "M")
    MaskSchedule: str = key("cosine", "cosine, uniform, pow<d>, log or exp", "gamma(u)")
    MinMaskRatio: float = key(1e-6, "schedules are clipped to [MinMaskRatio, 1]")
    NormEps: float = key(1e-5, "epsilon of its LayerNorms")
    InitStd: float = key(0.02, "standard deviation of the initial token and position embeddings")
    TmfArgs: MaskGitTransformer = section(MaskGitTransformer)


@dataclass
class Models:
    """The networks."""

    WorldModel: WorldModel = section(WorldModel)
    Agent: Agent = section(Agent)
    MaskGit: MaskGit = section(MaskGit)


@dataclass
class Evaluation:
    """How checkpoints are scored, filmed and judged."""

    NumEpisodes: int = key(20, "episodes per checkpoint")
    NumEnvs: int = key(5, "parallel environments of an evaluation")
    VideoWindows: int = key(4, "trajectories side by side in an imagination video")
    Greedy: bool = key(False, "take the most likely action instead of a sampled one")
    PredictionWindows: int = key(64, "held-out windows that a world-model report is made on")
    PredictionHorizon: int = key(15, "steps it predicts, or fewer where the training windows are shorter")


@dataclass
class Health:
    """Bounds of the health findings; they change nothing in training."""

    MinEntropy: float = key(0.02, "posterior or policy entropy, over the uniform's, below which to look")
    MaxEntropy: float = key(0.98, "posterior entropy, over the uniform's, above which to look")
    MaxRewardGap: float = key(0.5, "relative difference of imagined and real reward above which to look")
    RewardScale: float = key(0.01, "reward per step below which differences are relative to this instead")
    RewardSteps: int = key(1000, "latest steps per environment whose mean reward imagination is held against")
    MinExplained: float = key(0.0, "share of the returns' variance the value should at least explain")


@dataclass
class Config:
    """A whole configuration, one section of YAML per field."""

    Task: str = key("JointTrainAgent", "the only task; kept so that the release's files load")
    BasicSettings: BasicSettings = section(BasicSettings)
    Environment: Environment = section(Environment)
    JointTrainAgent: JointTrainAgent = section(JointTrainAgent)
    Models: Models = section(Models)
    Evaluation: Evaluation = section(Evaluation)
    Health: Health = section(Health)
