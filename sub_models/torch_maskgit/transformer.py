"""The bidirectional transformer that predicts masked tokens, conditioned on a hidden state."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from configuration.schema import MaskGitConfig
from sub_models.attention_blocks import BidirectionalBlock
from sub_models.fast_forms import linear_of_condition, linear_of_embeddings
from sub_models.linear import Linear, linear


class MaskedTokenTransformer(nn.Module):
    """Logits of every token from the visible ones and a condition (GIT-STORM, section 3.1).

    Each token's embedding meets its own slice of the hidden state, or with `Condition` "whole" a
    projection of all of it; the output layer shares its weights with the token embeddings (MaskGIT,
    appendix A).

    Args:
        config: the MaskGit section.
        num_tokens: K. num_classes: C; the MASK token is index C.
        condition_size: width of the hidden state, for slices divisible by K.
    """

    def __init__(self, config: MaskGitConfig, num_tokens: int, num_classes: int, condition_size: int) -> None:
        super().__init__()
        shape, slice_size = config.TmfArgs, 0
        if config.Condition == "slice":
            slice_size, rest = divmod(condition_size, num_tokens)
            assert rest == 0, "the hidden width must divide into K slices"
        self.num_tokens = num_tokens
        self.num_classes = num_classes
        self.mask_token = num_classes
        self.token = nn.Embedding(num_classes + 1, config.VocabDim)
        self.position = nn.Embedding(num_tokens, shape.EmbedDim)
        for table in (self.token, self.position):
            nn.init.normal_(table.weight, std=config.InitStd)
        self.input = Linear(config.VocabDim + slice_size, shape.EmbedDim)
        self.whole = None if slice_size else Linear(condition_size, num_tokens * shape.EmbedDim)
        self.blocks = nn.ModuleList(
            BidirectionalBlock(
                shape.EmbedDim,
                shape.NumHeads,
                shape.MlpDim,
                shape.Dropout,
                shape.AttentionDropout,
                config.NormEps,
            )
            for _ in range(shape.NumLayers)
        )
        self.output = Linear(shape.EmbedDim, shape.EmbedDim)
        self.output_norm = nn.LayerNorm(shape.EmbedDim, eps=config.NormEps)
        self.to_vocabulary = Linear(shape.EmbedDim, config.VocabDim)
        self.vocabulary_norm = nn.LayerNorm(config.VocabDim, eps=config.NormEps)
        self.bias = nn.Parameter(self.input.weight.new_zeros(num_classes))

    def condition(self, hidden: Tensor) -> Tensor:
        """The hidden state's and the positions' share of the input; computed once per sample.

        hidden (M, D) → (M, K, width).
        """
        if self.whole is not None:
            condition = self.whole(hidden).unflatten(-1, (self.num_tokens, -1))
        else:
            slices = hidden.unflatten(-1, (self.num_tokens, -1))
            condition = linear_of_condition(slices, self.token, self.input)
        return condition + self.position.weight.to(condition.dtype)

    def forward(self, tokens: Tensor, condition: Tensor, positions: Tensor | None = None) -> Tensor:
        """tokens (M, K) int64, masked ones C; condition from `condition` → logits (M, K, C).

        Given positions (M, n) int64, logits (M, n, C) of these tokens alone.
        """
        # input(concat(token(tokens), slice)) + position (or input(token(tokens)) + whole + position),
        # the parts of the product apart.
        x = linear_of_embeddings(tokens, self.token, self.input) + condition
        *earlier, last = self.blocks
        for block in earlier:
            x = block(x)
        x = last(x, positions)
        x = self.output_norm(F.gelu(self.output(x)))
        x = self.vocabulary_norm(F.gelu(self.to_vocabulary(x)))
        return linear(x, self.token.weight[: self.num_classes], self.bias)
