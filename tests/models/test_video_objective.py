"""The video objective: what it adds up, that each weight counts, and that a weight of 0 computes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from video_terms import MODEL, batch, built, frozen_lpips, objective, output_of, seeded, terms_of

from models.build_video import build_video_objective
from models.spec_video import LpipsSpec, VideoObjective
from models.video_objective import VideoLoss

TERMS = ("future_masks", "future_slots", "perceptual")


def test_that_the_reconstruction_error_is_the_mean_square_per_clip_in_signed_units() -> None:
    output, (clips, _) = output_of(built()), batch()
    for index, error in enumerate(objective().reconstruction_B(output, clips)):
        expected = ((output.reconstruction[index] - (clips[index] - 0.5) / 0.5) ** 2).mean()
        torch.testing.assert_close(error, expected)


def test_that_every_weight_counts_and_the_total_is_their_sum() -> None:
    output = output_of(built())
    parts = {name: terms_of(objective(**{name: 1.0}), output).total_B for name in TERMS}
    assert all(part.shape == (2,) and bool((part > 0).all()) for part in parts.values())
    weights = {"future_masks": 0.5, "future_slots": 2.0, "perceptual": 3.0}
    terms = terms_of(objective(**weights), output)
    assert list(terms.parts) == list(TERMS)
    torch.testing.assert_close(terms.total_B, sum(weights[name] * terms.parts[name] for name in TERMS))
    torch.testing.assert_close(terms.parts["perceptual"], parts["perceptual"])
    for name in TERMS:
        torch.testing.assert_close(terms_of(objective(**{name: 0.25}), output).total_B, 0.25 * parts[name])


@pytest.mark.parametrize("name", TERMS)
def test_that_the_term_moves_the_model_away_from_reconstruction_alone(name: str) -> None:
    """What the original's loss did not do: its gradient is part of the summed loss's."""
    model, (clips, noise), gradients = built(), batch(), []
    for loss in (objective(), objective(**{name: 1.0})):
        model.zero_grad(set_to_none=True)
        output = model(clips, noise)
        terms, error_B = loss.image_terms(output, clips), loss.reconstruction_B(output, clips)
        (error_B if terms is None else error_B + terms.total_B).mean().backward()
        gradients.append({key: value.grad for key, value in model.named_parameters()})
    alone, summed = gradients
    assert not [key for key in alone if torch.equal(alone[key], summed[key])]


@pytest.mark.parametrize("name", TERMS)
def test_that_a_weight_of_zero_builds_and_computes_nothing(name: str) -> None:
    others = {other: 1.0 for other in TERMS if other != name}
    loss = objective(**{name: 0.0}, **others)
    assert getattr(loss, "lpips" if name == "perceptual" else name) is None
    assert list(terms_of(loss, output_of(built())).parts) == list(others)


def test_that_without_terms_nothing_is_added_built_or_drawn() -> None:
    generator = seeded(9)
    before = generator.get_state()
    loss = build_video_objective(VideoObjective(), model=MODEL, generator=generator)
    assert torch.equal(generator.get_state(), before)
    assert list(loss.modules()) == [loss]
    for frames in (1, 3):
        assert loss.image_terms(output_of(built(), frames=frames), batch()[0]) is None
    assert loss.slot_terms(torch.ones(2, 3, 8), step=1).parts == {}


def test_that_a_clips_terms_do_not_depend_on_the_others() -> None:
    loss, output = objective(future_masks=1.0, future_slots=1.0, perceptual=1.0), output_of(built(), clips=3)

    def rows(first: int, last: int) -> Any:
        return terms_of(loss, output._replace(**{key: getattr(output, key)[first:last] for key in output._fields[:5]}))

    whole, one, two = rows(0, 3), rows(0, 1), rows(1, 3)
    for name in TERMS:
        torch.testing.assert_close(torch.cat([one.parts[name], two.parts[name]]), whole.parts[name], atol=1e-7, rtol=1e-5)
    assert not VideoLoss.pools_batch


@pytest.mark.parametrize(
    ("settings", "side", "said"),
    [
        ({"future_masks": 1.0}, 36, "resolution 36 is not a multiple of 8"),
        ({"future_slots": 1.0}, 36, "resolution 36 is not a multiple of 8"),
        ({"perceptual": 1.0}, 16, "lpips.net alex takes 31 pixels and more, resolution is 16"),
    ],
)
def test_that_an_objective_that_cannot_train_the_model_is_refused(settings: dict[str, Any], side: int, said: str) -> None:
    decoder = MODEL.decoder.model_copy(update={"initial_resolution": 4 if side == 16 else 9})
    model = type(MODEL).model_validate(MODEL.model_dump() | {"resolution": side, "decoder": decoder.model_dump()})
    spec = VideoObjective(lpips=LpipsSpec(weights="random"), **settings)
    assert VideoObjective().problems(model) == []
    with pytest.raises(ValueError, match=said):
        build_video_objective(spec, model=model, generator=seeded(0), lpips=frozen_lpips() if spec.perceptual else None)


def test_that_the_net_of_the_perceptual_term_is_given_with_it_and_not_without() -> None:
    with pytest.raises(ValueError, match="perceptual is 1 and an LPIPS net is missing"):
        build_video_objective(VideoObjective(perceptual=1), model=MODEL, generator=seeded(0))
    with pytest.raises(ValueError, match="perceptual is 0 and an LPIPS net is given"):
        build_video_objective(VideoObjective(), model=MODEL, generator=seeded(0), lpips=frozen_lpips())


def test_that_autocast_leaves_the_terms_close_and_finite() -> None:
    loss, model = objective(future_masks=1.0, future_slots=1.0, perceptual=1.0), built()
    full = terms_of(loss, output_of(model)).parts
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = terms_of(loss, output_of(model))
    low.total_B.mean().backward()
    for name in TERMS:
        torch.testing.assert_close(low.parts[name], full[name], atol=0.02, rtol=0.1)
    assert all(parameter.grad is None or bool(parameter.grad.isfinite().all()) for parameter in model.parameters())
