"""Predictors between frames, against torch's own layers and the formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.initialisation import Weights
from models.predictor import MlpStep, TransformerStep


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights() -> Weights:
    return Weights(scheme="covloss", generator=seeded(0))


def transformer(*, pre_norm: bool, size: int = 8) -> TransformerStep:
    return TransformerStep(slot_size=size, layers=1, heads=2, feedforward=12, pre_norm=pre_norm, weights=weights())


def slots(size: int = 8) -> Tensor:
    return torch.randn(2, 3, size, generator=seeded(1))


@pytest.mark.parametrize("pre_norm", [False, True])
def test_that_the_transformer_is_torchs_encoder_layer(pre_norm: bool) -> None:
    ours = transformer(pre_norm=pre_norm)
    layer = ours.layers[0]
    theirs = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, norm_first=pre_norm)
    with torch.no_grad():
        for kind in ("weight", "bias"):
            joined = torch.cat([getattr(layer.attention.query, kind), getattr(layer.attention.key_value, kind)])
            getattr(theirs.self_attn, f"in_proj_{kind}").copy_(joined)
        theirs.self_attn.out_proj.load_state_dict(layer.attention.output.state_dict())
        theirs.linear1.load_state_dict(layer.mlp[0].state_dict())
        theirs.linear2.load_state_dict(layer.mlp[2].state_dict())
        for norm, mine in ((theirs.norm1, layer.norm_attention), (theirs.norm2, layer.norm_mlp)):
            nn.init.normal_(mine.weight)
            nn.init.normal_(mine.bias)
            norm.load_state_dict(mine.state_dict())
    torch.testing.assert_close(ours(slots()), theirs(slots()), atol=2e-6, rtol=1e-5)


def test_that_the_mlp_adds_to_each_slot_on_its_own() -> None:
    step = MlpStep(slot_size=8, hidden=16, weights=weights())
    given = slots()
    for clip in range(2):
        for slot in range(3):
            vector = given[clip, slot]
            hidden = torch.relu(step.mlp[0](nn.functional.layer_norm(vector, (8,))))
            torch.testing.assert_close(step(given)[clip, slot], vector + step.mlp[2](hidden), atol=1e-6, rtol=1e-5)


def test_that_predictors_have_the_recipes_sizes() -> None:
    """D 128: the late recipe's MLP D -> 2D -> D with its norm; SAVi's layer of 4 heads and 256."""
    mlp = MlpStep(slot_size=128, hidden=256, weights=weights())
    layer = TransformerStep(slot_size=128, layers=1, heads=4, feedforward=256, pre_norm=False, weights=weights())
    count = {step: sum(parameter.numel() for parameter in step.parameters()) for step in (mlp, layer)}
    dense = 128 * 256 + 256 + 256 * 128 + 128
    assert count[mlp] == dense + 2 * 128
    assert count[layer] == dense + 4 * (128 * 128 + 128) + 4 * 128


@pytest.mark.parametrize("pre_norm", [False, True])
def test_that_the_order_of_slots_has_no_part_in_it(pre_norm: bool) -> None:
    step, order = transformer(pre_norm=pre_norm), [2, 0, 1]
    torch.testing.assert_close(step(slots()[:, order]), step(slots())[:, order], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_that_predictors_compute_in_fp32_under_autocast(pre_norm: bool) -> None:
    for step in (transformer(pre_norm=pre_norm), MlpStep(slot_size=8, hidden=16, weights=weights())):
        full = step(slots())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(step(slots()), full)
