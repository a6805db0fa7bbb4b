"""Draft-and-Revise sampling of masked token models (Lee et al. 2022, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sub_models.functions_losses import sample
from sub_models.torch_maskgit.masking import positions_by_group, random_groups

Predict = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class DraftAndRevise:
    """A sampling plan: one draft sweep, then `num_revisions` revise sweeps over all tokens.

    A sweep splits the tokens into groups by a fresh permutation, and group by group masks,
    predicts and draws. A sweep with one group masks everything and forgets what came before,
    so the sweeps before the last such sweep change nothing and are left out.

    Args:
        num_tokens: K.
        draft_groups: T_draft. revise_groups: T_revise. num_revisions: M.
        unimix: share of the uniform distribution in every draw.
    """

    num_tokens: int
    draft_groups: int
    revise_groups: int
    num_revisions: int
    unimix: float = 0.0

    def __str__(self) -> str:
        """The plan as T_draft/T_revise/M."""
        return f"{self.draft_groups}/{self.revise_groups}/{self.num_revisions}"

    def sized(self, draft_groups: int, revise_groups: int, num_revisions: int) -> DraftAndRevise:
        """Return the same plan with other sizes."""
        return DraftAndRevise(self.num_tokens, draft_groups, revise_groups, num_revisions, self.unimix)

    @property
    def sweeps(self) -> tuple[int, ...]:
        """Number of groups of each sweep that matters, in order."""
        asked = (self.draft_groups, *[self.revise_groups] * self.num_revisions)
        forgets = [index for index, groups in enumerate(asked) if groups == 1]
        return asked[forgets[-1] :] if forgets else asked

    @property
    def is_joint(self) -> bool:
        """Whether the tokens of a sample can depend on each other."""
        return self.sweeps[-1] > 1

    @property
    def noise_size(self) -> int:
        """Uniform numbers per sample: one draw per token and sweep, and its permutation."""
        return sum(self.num_tokens * (2 if groups > 1 else 1) for groups in self.sweeps)

    def groups(self, noise: Tensor) -> list[Tensor]:
        """Return the group of every token in each sweep, (..., K) int64, as `draw` has them with it."""
        return [
            torch.zeros_like(draws, dtype=torch.long) if group_of is None else group_of
            for draws, group_of in self._parts(noise)
        ]

    def _parts(self, noise: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield each sweep's numbers to draw with, and the group of every token if it has several."""
        assert noise.shape[-1] == self.noise_size, f"noise of {noise.shape[-1]}, need {self.noise_size}"
        parts = iter(noise.split(self.num_tokens, dim=-1))
        for groups in self.sweeps:
            yield next(parts), random_groups(next(parts), groups) if groups > 1 else None

    def draw(self, predict: Predict, mask_token: int, noise: Tensor) -> Tensor:
        """Draw tokens.

        Args:
            predict: tokens (..., K) int64, partly masked, and positions (..., n), or None for all, to
                logits (..., n, C) of the tokens there.
            mask_token: index of the MASK token.
            noise: (..., noise_size), uniform in [0, 1).

        Returns:
            (..., K), int64 in [0, C).
        """
        tokens = torch.full(
            (*noise.shape[:-1], self.num_tokens), mask_token, dtype=torch.long, device=noise.device
        )
        for groups, (draws, group_of) in zip(self.sweeps, self._parts(noise), strict=True):
            if group_of is None:
                tokens = sample(predict(torch.full_like(tokens, mask_token), None), draws, self.unimix)
                continue
            for chosen in positions_by_group(group_of, groups):
                logits = predict(tokens.scatter(-1, chosen, mask_token), chosen)
                tokens = tokens.scatter(-1, chosen, sample(logits, draws.gather(-1, chosen), self.unimix))
        return tokens
