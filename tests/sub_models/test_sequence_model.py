"""The causal transformer and its key/value cache."""

from __future__ import annotations

from functools import partial
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from tests_support import ACTIONS, SPACES, small_config, uniform
from torch import Tensor
from torch._dynamo.utils import counters

from sub_models.attention_blocks import BidirectionalBlock, CausalBlock, KeyValueCache, MultiHeadAttention
from sub_models.fast_forms import attend, attend_to_cached, products_are_faster, softmax
from sub_models.transformer_model import ConcatMixer, SequenceModel, encode_action

LENGTH = 6


def make_model() -> SequenceModel:
    torch.manual_seed(0)
    return SequenceModel(small_config().Models.WorldModel, SPACES.action).eval()


def random_inputs(length: int = LENGTH, seed: int = 0) -> tuple[Tensor, Tensor]:
    latent = uniform(2, length, 20, seed=seed)
    return latent, (uniform(2, length, seed=seed + 1) * ACTIONS).long()


@pytest.mark.parametrize("changed", range(LENGTH))
def test_the_past_does_not_see_the_future(changed: int) -> None:
    model, (latent, action) = make_model(), random_inputs()
    before = model(latent, action)
    for what in ("latent", "action"):
        other_latent, other_action = latent.clone(), action.clone()
        if what == "latent":
            other_latent[:, changed] += 1
        else:
            other_action[:, changed] = (other_action[:, changed] + 1) % ACTIONS
        after = model(other_latent, other_action)
        torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=0, atol=1e-6)
        differs = (after - before).abs().amax((0, 2))[changed:]
        assert (differs > 1e-5).all(), f"{what} {changed} must reach every later step"


CHUNKINGS = [
    [b - a for a, b in zip((0, *cuts), (*cuts, LENGTH), strict=True)]
    for number in range(LENGTH)
    for cuts in combinations(range(1, LENGTH), number)
]


@pytest.mark.parametrize("chunks", CHUNKINGS, ids=lambda chunks: "+".join(map(str, chunks)))
def test_cached_equals_uncached(chunks: list[int]) -> None:
    model, (latent, action) = make_model(), random_inputs()
    expected = model(latent, action)
    cache = model.make_cache(LENGTH)
    pieces = zip(latent.split(chunks, 1), action.split(chunks, 1), strict=True)
    hidden = torch.cat([model(*piece, cache) for piece in pieces], dim=1)
    torch.testing.assert_close(hidden, expected, rtol=1e-5, atol=1e-6)
    assert all(layer.length == LENGTH for layer in cache)


@torch.no_grad()
def test_single_tokens_in_bfloat16_see_what_is_cached_and_nothing_else() -> None:
    attention = MultiHeadAttention(8, 2, False, 0.0, causal=True).to(torch.bfloat16)
    x = uniform(3, LENGTH, 8).to(torch.bfloat16) - 0.5
    cache = KeyValueCache(LENGTH + 2)  # its end stays unused
    pieces = [attention(piece, cache) for piece in x.split([2, *[1] * (LENGTH - 2)], 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), attention(x), rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_and_its_gradient_in_bfloat16_are_those_of_float32(causal: bool) -> None:
    exact = MultiHeadAttention(8, 2, False, 0.0, causal)
    rounded = MultiHeadAttention(8, 2, False, 0.0, causal)
    rounded.load_state_dict(exact.state_dict())
    rounded.to(torch.bfloat16)
    x = uniform(3, LENGTH, 8) - 0.5
    results = []
    for attention in (exact, rounded):
        output = attention(x.to(attention.output.weight.dtype))
        output.square().sum().backward()
        gradient = attention.query_key_value.weight.grad
        results.append((output.detach().float(), gradient.float()))
    for value, other in zip(*results, strict=True):
        assert value.norm() > 0
        assert (value - other).norm() / value.norm() < 0.03


def test_a_cache_refuses_more_than_it_holds() -> None:
    model = make_model()
    cache = model.make_cache(LENGTH - 1)
    with pytest.raises(AssertionError, match="cannot hold"):
        model(*random_inputs(), cache)
    with pytest.raises(AssertionError, match="TransformerMaxLength"):
        model.make_cache(1000)


def test_a_cache_projects_only_new_tokens() -> None:
    model, (latent, action) = make_model(), random_inputs()
    projected = []
    for block in model.blocks:
        block.attention.query_key_value.register_forward_hook(
            lambda module, inputs, output: projected.append(output.shape[1])
        )
    cache = model.make_cache(LENGTH)
    model(latent[:, :4], action[:, :4], cache)
    model(latent[:, 4:5], action[:, 4:5], cache)
    assert projected == [4, 4, 1, 1]


def test_dropout_acts_in_training_only() -> None:
    model, inputs = make_model(), random_inputs()
    assert torch.equal(model(*inputs), model(*inputs))
    model.train()
    assert not torch.equal(model(*inputs), model(*inputs))
    for module in model.modules():
        if isinstance(module, MultiHeadAttention):
            module.attention_dropout = 0.0
    assert not torch.equal(model(*inputs), model(*inputs)), "also after the output projections"
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    torch.testing.assert_close(model(*inputs), model.eval()(*inputs))


def test_dropout_of_attention_probabilities() -> None:
    torch.manual_seed(0)
    attention = MultiHeadAttention(8, 2, False, 0.5, causal=True)
    x = uniform(1, 5, 8)
    assert not torch.equal(attention(x), attention(x))
    assert torch.equal(attention.eval()(x), attention(x))


@pytest.mark.parametrize("causal", [True, False])
def test_attention_against_its_definition(causal: bool) -> None:
    torch.manual_seed(0)
    attention = MultiHeadAttention(8, 2, True, 0.0, causal)
    x = torch.randn(3, 5, 8)
    query, key, value = (
        part.view(3, 5, 2, 4).transpose(1, 2) for part in attention.query_key_value(x).chunk(3, -1)
    )
    scores = query @ key.transpose(-1, -2) / 4**0.5
    if causal:
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    expected = attention.output((scores.softmax(-1) @ value).transpose(1, 2).reshape(3, 5, 8))
    torch.testing.assert_close(attention(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("length", [5, 16, 40])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_in_bfloat16_is_that_of_float32(rows: int, length: int, causal: bool) -> None:
    torch.manual_seed(0)
    exact = [torch.randn(rows, 2, length, 8, dtype=torch.bfloat16).float() for _ in range(3)]
    expected = F.scaled_dot_product_attention(*exact, is_causal=causal)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            found = attend(*(part.bfloat16() for part in exact), causal, 0.0)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)
    scores = torch.randn(rows, length)
    torch.testing.assert_close(softmax(scores.bfloat16()).float(), scores.softmax(-1), rtol=0.03, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_query_sees_the_used_part_of_the_room(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, keys, values = (torch.randn(3, 2, length, 8) for length in (1, 16, 16))
    query = query.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = attend_to_cached(query, keys, values, 5, 0.0)
    expected = F.scaled_dot_product_attention(query.float(), keys[:, :, :5], values[:, :, :5])
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected.to(dtype), rtol=1e-5, atol=1e-6)


def test_products_are_for_bfloat16_on_a_cpu() -> None:
    assert products_are_faster(torch.zeros(1, dtype=torch.bfloat16))
    assert not products_are_faster(torch.zeros(1))
    assert not products_are_faster(torch.zeros(1, dtype=torch.bfloat16, device="meta"))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_head_that_sees_one_key_alone_has_no_gradient_of_its_scores(device: str) -> None:
    torch.manual_seed(0)
    query = 16 + torch.randn(8, 2, 16, 8)
    key = torch.linspace(-1, 1, 16).view(16, 1) * 64 + torch.randn(8, 2, 16, 8)
    parts = [part.to(device, torch.bfloat16).requires_grad_() for part in (query, key, torch.randn_like(key))]
    found = attend(*parts, causal=False, dropout=0.1)
    (found.float() * torch.randn(found.shape, device=device)).sum().backward()
    assert [float(part.grad.abs().max()) for part in parts[:2]] == [0.0, 0.0]
    assert parts[2].grad.abs().max() > 0


@pytest.mark.slow
def test_compiling_does_not_fuse_the_products_again() -> None:
    def fusable(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return torch.softmax(query @ keys.mT * query.shape[-1] ** -0.5, -1) @ values

    full = [torch.randn(4, 2, 32, 64, requires_grad=True) for _ in range(3)]
    reduced = [part.detach().bfloat16().requires_grad_() for part in full]
    fused = []
    for function, parts in ((partial(attend, causal=True, dropout=0.1), reduced), (fusable, full)):
        counters.clear()
        with torch._inductor.config.patch(force_disable_caches=True):
            torch.compile(function, dynamic=False)(*parts).float().sum().backward()
        fused.append(counters["inductor"]["fuse_attention"])
    assert fused[0] == 0 < fused[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_card_takes_gradients_of_fused_attention_in_less_than_float32(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused: list[torch.dtype] = []

    def attention(query: Tensor, *others: Tensor, **_: object) -> Tensor:
        fused.append(query.dtype)
        return query

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    reduced, full = (torch.zeros(2, 2, 4, 8, dtype=kind, device="meta") for kind in (dtype, torch.float32))
    for causal in (True, False):
        attend(reduced, reduced, reduced, causal, 0.1)
        attend(full, full, full, causal, 0.1)
        with torch.no_grad():
            attend(reduced, reduced, reduced, causal, 0.0)
    assert fused == [torch.float32, dtype] * 2


def test_causal_block_is_post_norm() -> None:
    torch.manual_seed(0)
    block = CausalBlock(8, 2, 16, 0.1, 1e-6).eval()
    x = torch.randn(2, 4, 8)
    middle = F.layer_norm(x + block.attention(x), (8,), eps=1e-6)
    expected = F.layer_norm(middle + block.contract(F.relu(block.expand(middle))), (8,), eps=1e-6)
    torch.testing.assert_close(block(x), expected)
    biases = {name for name, _ in block.named_parameters() if name.endswith("bias")}
    assert not any(name.startswith("attention.") for name in biases)
    assert {"expand.bias", "contract.bias"} <= biases


def test_bidirectional_block_is_pre_norm() -> None:
    torch.manual_seed(0)
    block = BidirectionalBlock(8, 2, 12, 0.5, 0.5, 1e-3)
    x = torch.randn(2, 4, 8)
    assert not torch.equal(block(x), block(x))
    block.eval()
    middle = x + block.attention(F.layer_norm(x, (8,), eps=1e-3))
    expected = middle + block.contract(F.gelu(block.expand(F.layer_norm(middle, (8,), eps=1e-3))))
    torch.testing.assert_close(block(x), expected)
    assert block.expand.out_features == 12
    assert {name for name, _ in block.attention.named_parameters() if name.endswith("bias")} == {
        "query_key_value.bias",
        "output.bias",
    }


def test_state_mixer_joins_latent_and_action() -> None:
    torch.manual_seed(0)
    config = small_config().Models.WorldModel
    config.NormEps = 1e-3
    mixer = ConcatMixer(config, ACTIONS)
    latent, action = random_inputs()
    joined = torch.cat([latent, F.one_hot(action, ACTIONS).float()], dim=-1)
    inner = F.relu(F.layer_norm(joined @ mixer.input.weight.T, (16,), eps=1e-3))
    expected = F.layer_norm(inner @ mixer.mlp.output.weight.T, (16,), eps=1e-3)
    encoded = encode_action(action, SPACES.action, torch.float32)
    torch.testing.assert_close(mixer(latent, encoded), expected)


def test_positions_and_norms_follow_the_configuration() -> None:
    model, (latent, action) = make_model(), random_inputs()
    assert model.position.num_embeddings == small_config().Models.WorldModel.TransformerMaxLength
    assert 0.8 < model.position.weight.std() < 1.2
    assert {module.eps for module in (model.norm, model.blocks[0].attention_norm)} == {1e-6}
    assert {model.mixer.mlp.input_norm.eps, model.mixer.mlp.output_norm.eps} == {1e-5}
    with torch.no_grad():
        before = model(latent, action)
        model.position.weight[3, 0] += 1
        after = model(latent, action)
    assert torch.equal(after[:, :3], before[:, :3]) and not torch.allclose(after[:, 3:], before[:, 3:])


def test_key_value_cache_keeps_order() -> None:
    cache = KeyValueCache(5)
    pieces = [torch.full((1, 1, length, 2), float(index)) for index, length in enumerate((2, 1, 2))]
    for piece in pieces:
        keys, values = cache.append(piece, -piece)
    assert torch.equal(keys, torch.cat(pieces, dim=2)) and torch.equal(values, -keys)
