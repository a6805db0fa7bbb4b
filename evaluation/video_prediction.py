"""How well world models predict clips that they were not trained on, and at what cost."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compute.random_streams import RandomStreams, derive_seed
from evaluation.open_loop import open_loop, to_pixels
from evaluation.video_metrics import code_perplexity, frame_scores, frechet_distance, prior_nats
from sub_models.batch import Batch
from sub_models.functions_losses import sample
from sub_models.priors import MaskGITPrior
from sub_models.torch_maskgit.sampling import DraftAndRevise
from sub_models.world_models import WorldModel
from utils import UserError

Plan = tuple[int, int, int]  # T_draft, T_revise, M
Measure = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]  # of truth, prediction: (B, h)
Features = Callable[[np.ndarray], np.ndarray]  # of uint8 (B, h, S, S, 3): (B, d), or (B, n, d) of frames
COPY = "last frame"


@dataclass
class Predicted:
    """What one predictor says of a batch of windows."""

    frames: np.ndarray  # uint8 (B, h, S, S, 3), after the context
    counts: Tensor | None = None  # (K, C): how often each class was drawn in them
    nats: Tensor | None = None  # (B, h): of the true latents given the true past, a latent
    seconds: float = 0.0  # of the processor


Predictor = Callable[[Batch], Predicted]  # of windows (B, context + h)


def copies(context: int) -> Predictor:
    """Return what predicts the last frame of the context, again and again."""

    def predict(batch: Batch) -> Predicted:
        frames = batch.observation.cpu().numpy()
        return Predicted(frames[:, context - 1, None].repeat(frames.shape[1] - context, axis=1))

    return predict


def predictor(world_model: WorldModel, plan: DraftAndRevise | None, context: int, seed: int) -> Predictor:
    """Return what predicts by a world model in evaluation mode.

    Args:
        plan: given to its prior, if that is a MaskGIT. seed: of all that is drawn.
    """
    device = next(world_model.parameters()).device
    drawn, judged = (RandomStreams(derive_seed(seed, purpose), device) for purpose in ("drawn", "judged"))

    @torch.no_grad()
    def predict(batch: Batch) -> Predicted:
        if plan is not None:
            world_model.prior.plan = plan
        batch = batch.to(device)
        start = time.process_time()
        told = open_loop(world_model, batch, context, drawn)
        frames = to_pixels(told.prediction[:, context:]).cpu().numpy()
        seconds = time.process_time() - start
        counts = told.latent[:, context:].sum((0, 1), dtype=torch.float64).view(world_model.latent_shape)
        return Predicted(frames, counts, nats_of_truth(world_model, batch, context, judged), seconds)

    return predict


def nats_of_truth(world_model: WorldModel, batch: Batch, context: int, streams: RandomStreams) -> Tensor:
    """Return the prior's cross-entropy (B, h) of posterior samples after the context, given the true past."""
    posterior = world_model.posterior(batch.observation)
    index = sample(posterior, streams.uniform("posterior", *posterior.shape[:-1]))
    hidden = world_model.sequence_model(world_model.one_hot_latent(index), batch.action)
    noise = streams.uniform("groups", *index[:, context:].shape)
    return prior_nats(world_model.prior, hidden[:, context - 1 : -1], index[:, context:], noise)


def predictors_of(
    name: str, world_model: WorldModel, plans: list[Plan], context: int, seed: int
) -> Iterator[tuple[str, Predictor]]:
    """Yield name and predictor of a run at each plan; of one that has no MaskGIT prior, one."""
    if not isinstance(world_model.prior, MaskGITPrior):
        yield name, predictor(world_model, None, context, seed)
        return
    own = world_model.prior.plan
    for plan in [own.sized(*sizes) for sizes in plans] or [own]:
        if max(plan.draft_groups, plan.revise_groups) > own.num_tokens:
            raise UserError(f"-plans={plan}: at most {own.num_tokens} groups, the latents of {name}")
        yield f"{name} {plan}", predictor(world_model, plan, context, seed)


@dataclass
class Tally:
    """What was measured of one predictor, batch by batch."""

    scores: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))  # each (B, h)
    features: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    counts: Tensor | float = 0.0
    seconds: float = 0.0

    def add(self, predicted: Predicted, scores: dict[str, np.ndarray]) -> None:
        """Count a batch of predictions and their scores, each (B, h)."""
        if predicted.nats is not None:
            scores["prior_nats"] = predicted.nats.cpu().numpy()
            self.counts = self.counts + predicted.counts.cpu()
        self.seconds += predicted.seconds
        for name, values in scores.items():
            self.scores[name].append(values)

    def result(self, true_features: dict[str, list[np.ndarray]], group: int) -> dict[str, Any]:
        """Return totals, and `by_horizon` lists of h; Fréchet distances are means over groups of windows."""
        by_horizon = {name: np.concatenate(values).mean(0) for name, values in self.scores.items()}
        total = {name: float(values.mean()) for name, values in by_horizon.items()}
        for each in (by_horizon, total):
            if (nats := each.pop("prior_nats", None)) is not None:
                each["prior_perplexity"] = np.exp(nats)
        if "prior_perplexity" in total:
            total |= {"prior_perplexity": float(total["prior_perplexity"])}
            total["code_perplexity"] = code_perplexity(self.counts)
        for name, features in self.features.items():
            total[name] = group_distance(np.concatenate(true_features[name]), np.concatenate(features), group)
        lists = {name: values.tolist() for name, values in by_horizon.items()}
        return total | {"seconds": round(self.seconds, 3), "by_horizon": lists}


def group_distance(truth: np.ndarray, predicted: np.ndarray, group: int) -> float:
    """Return the Fréchet distance of features (W, ..., d), as a mean over groups of so many windows."""
    starts = range(0, max(len(truth) - group, 0) + 1, group)  # whole groups, or all that there is
    pairs = [[each[start : start + group] for each in (truth, predicted)] for start in starts]
    flat = [[each.reshape(-1, each.shape[-1]) for each in pair] for pair in pairs]
    return float(np.mean([frechet_distance(*pair) for pair in flat]))


@dataclass(frozen=True)
class Judgement:
    """Measurements by predictor, and the first windows to look at."""

    results: dict[str, dict[str, Any]]
    windows: int
    truth: np.ndarray  # uint8 (W, context + h, S, S, 3)
    shown: dict[str, np.ndarray]  # uint8 (W, h, S, S, 3) by predictor


def judge(
    predictors: dict[str, Predictor],
    batches: Iterator[Batch],
    context: int,
    group: int,
    measures: Sequence[Measure] = (frame_scores,),
    features: dict[str, Features] | None = None,
) -> Judgement:
    """Measure predictions of batches of windows (B, context + h); what is in the context counts nowhere.

    Args:
        measures: of uint8 (B, h, S, S, 3), truth and prediction.
        group: windows whose features a Fréchet distance is taken of. features: whose, by its name.
    """
    tallies = {name: Tally() for name in predictors}
    extractors, true_features = features or {}, defaultdict(list)
    shown, first, windows = {}, None, 0
    for batch in batches:
        truth = batch.observation[:, context:].numpy()
        windows += len(truth)
        for each, extract in extractors.items():
            true_features[each].append(extract(truth))
        for name, predict in predictors.items():
            predicted = predict(batch)
            scores = [measure(truth, predicted.frames) for measure in measures]
            tallies[name].add(predicted, {key: value for each in scores for key, value in each.items()})
            for each, extract in extractors.items():
                tallies[name].features[each].append(extract(predicted.frames))
            shown.setdefault(name, predicted.frames)
        first = batch.observation.numpy() if first is None else first
    if extractors and windows < 2:
        raise UserError("there is one held-out window, a Fréchet distance is of two or more")
    results = {name: tally.result(true_features, group) for name, tally in tallies.items()}
    return Judgement(results, windows, first, shown)
