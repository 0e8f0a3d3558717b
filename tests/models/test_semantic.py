"""The terms that tie slots to sentences, against plain loops over images, slots, roles and pixels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from models.build import build_objective
from models.semantic import LanguageSizes, Semantic, end_of_text, mask_entropy, same_sentence
from models.slot_model import ConditionedInputs, SlotOutput
from models.spec_language import SemanticObjective

IMAGES, SLOTS, SIZE, TEXT = 5, 4, 6, 7
ALL: dict[str, float] = {"contrastive": 0.7, "text": 1.5, "names": 0.4, "entropy": 0.3}
NAMES = [[[0, 3], [7, 1]], [[2, 0], [-1, -1]], [[-1, -1], [-1, -1]], [[-1, -1], [5, 2]], [[1, 1], [1, 1]]]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def built(**changes: float) -> Semantic:
    spec = SemanticObjective(hidden=9, temperature=changes.pop("temperature", 0.2), **changes)
    language = LanguageSizes(text_size=TEXT, colours=8, shapes=4)
    objective = build_objective(spec, slot_size=SIZE, num_slots=SLOTS, generator=seeded(0), language=language)
    assert isinstance(objective, Semantic)
    return objective


def slots_of(images: int = IMAGES) -> Tensor:
    return (3 * torch.randn(images, SLOTS, SIZE, generator=seeded(1))).requires_grad_()


def text_of(images: int = IMAGES) -> Tensor:
    return torch.randn(images, TEXT, generator=seeded(2)).requires_grad_()


def output_of(slots: Tensor, masks: Tensor | None = None) -> SlotOutput:
    if masks is None:
        masks = torch.randn(len(slots), SLOTS, 3, 5, generator=seeded(3)).softmax(dim=1)
    return SlotOutput(torch.zeros(len(slots), 3, 3, 5), masks, slots, torch.zeros(len(slots), SLOTS, 2))


def inputs_of(text: Tensor | None, *, padding: Tensor | None = None, names: list[Any] | None = NAMES) -> ConditionedInputs:
    return ConditionedInputs(torch.zeros(IMAGES, 2, 3), text, padding, None if names is None else torch.tensor(names))


def image_part(objective: Semantic, name: str, slots: Tensor, inputs: ConditionedInputs) -> Tensor:
    terms = objective.image_terms(output_of(slots), inputs)
    assert terms is not None
    assert set(terms.parts) == {name}
    return terms.parts[name]


def normed(vector: Tensor) -> Tensor:
    return (vector - vector.mean()) / torch.sqrt(vector.var(unbiased=False) + 1e-5)


def plain_pool(slots: Tensor, query: Tensor) -> Tensor:
    """[K,D] -> [D]"""
    exponentials = [math.e ** (query * normed(slot)).sum() for slot in slots]
    return sum(e / sum(exponentials) * normed(slot) for e, slot in zip(exponentials, slots, strict=True))


def plain_contrastive(objective: Semantic, slots: Tensor, text: Tensor, temperature: float) -> Tensor:
    """Sums over pairs of a sentence and a slot, of which those of another image with the same sentence are left out."""
    head = objective.contrastive_head
    assert head is not None
    images = range(len(slots))

    def fit(sentence: int, image: int) -> Tensor:
        projected = head.text(text[sentence])
        found = [head.slots(normed(slot)) for slot in slots[image]]
        return sum(torch.exp(torch.cosine_similarity(projected, one, dim=0) / temperature) for one in found)

    def counts(one: int, other: int) -> bool:
        return one == other or not torch.equal(text[one], text[other])

    losses = []
    for i in images:
        losses.append(-torch.log(fit(i, i) / sum(fit(i, j) for j in images if counts(i, j))))
        losses.append(-torch.log(fit(i, i) / sum(fit(j, i) for j in images if counts(i, j))))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_that_the_contrastive_term_is_the_plain_sum_over_sentences_and_slots(temperature: float) -> None:
    objective, slots = built(contrastive=0.7, temperature=temperature), slots_of()
    text = text_of().detach()[[0, 1, 1, 2, 1]]
    terms = objective.slot_terms(slots, step=1, text_BT=text)
    expected = plain_contrastive(objective, slots, text, temperature)
    torch.testing.assert_close(terms.parts["contrastive"], expected)
    torch.testing.assert_close(terms.total, 0.7 * expected)
    mine, theirs = (torch.autograd.grad(loss, slots, retain_graph=True)[0] for loss in (terms.parts["contrastive"], expected))
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


def test_that_images_with_one_sentence_are_not_told_apart() -> None:
    objective, slots = built(contrastive=1.0), slots_of()
    text = text_of()
    assert same_sentence(text[[0, 1, 0]]).tolist() == [[True, False, True], [False, True, False], [True, False, True]]
    assert objective.slot_terms(slots, step=1, text_BT=text[[0]].expand(IMAGES, -1)).total.item() == 0
    twins = objective.slot_terms(slots[:2], step=1, text_BT=text[[0, 0]]).total
    others = objective.slot_terms(slots[:2], step=1, text_BT=text[[0, 1]]).total
    assert twins.item() == 0 < others.item()


def test_that_a_single_image_has_nothing_to_be_told_from() -> None:
    slots = slots_of(1)
    total = built(contrastive=1.0).slot_terms(slots, step=1, text_BT=text_of(1)).total
    total.backward()
    assert total.item() == 0
    assert slots.grad is not None
    assert torch.equal(slots.grad, torch.zeros_like(slots))


def test_that_slots_that_say_nothing_cost_log_of_the_batch_and_slots_that_learn_cost_little() -> None:
    objective, text = built(contrastive=1.0, temperature=0.1), text_of().detach()
    even = objective.slot_terms(slots_of()[:1].expand(IMAGES, -1, -1), step=1, text_BT=text).total
    assert even.item() >= math.log(IMAGES) - 1e-5  # that exactly from sentence to image, at least that the other way
    slots = slots_of()
    adam = torch.optim.Adam([slots, *objective.parameters()], lr=0.03)
    for _ in range(60):
        adam.zero_grad()
        total = objective.slot_terms(slots, step=1, text_BT=text).total
        total.backward()
        adam.step()
    assert total.item() < 0.1


def test_that_the_text_term_is_the_squared_error_of_the_pooled_slots_prediction() -> None:
    objective, slots, text = built(text=1.5), slots_of(), text_of()
    head = objective.text_head
    assert head is not None
    first, _, last = head.mlp
    expected = [
        (last(first(plain_pool(slots[i], head.pool.queries_RD[0])).relu()) - text[i]).square().sum() / TEXT for i in range(IMAGES)
    ]
    terms = objective.image_terms(output_of(slots), inputs_of(text))
    assert terms is not None
    torch.testing.assert_close(terms.parts["text"], torch.stack(expected))
    torch.testing.assert_close(terms.total_B, 1.5 * torch.stack(expected))


def test_that_the_end_of_a_sentence_is_the_row_before_its_padding() -> None:
    tokens = torch.randn(3, 4, TEXT, generator=seeded(2))
    padding = torch.tensor([[False, False, False, True], [False] * 4, [False, True, True, True]])
    found = end_of_text(ConditionedInputs(torch.zeros(3, 2, 3), tokens, padding))
    assert torch.equal(found, torch.stack([tokens[0, 2], tokens[1, 3], tokens[2, 0]]))
    none = end_of_text(ConditionedInputs(torch.zeros(0, 2, 3), tokens[:0], padding[:0]))
    assert none.shape == (0, TEXT)


def test_that_the_names_term_is_the_mean_over_named_roles_and_zero_where_none_is_named() -> None:
    objective, slots = built(names=0.4), slots_of()
    head = objective.names_head
    assert head is not None
    expected = []
    for i, roles in enumerate(NAMES):
        costs = []
        for role, (colour, shape) in enumerate(roles):
            if colour != -1:
                pooled = plain_pool(slots[i], head.pool.queries_RD[role])
                costs.append(-head.colour(pooled).log_softmax(0)[colour] - head.shape(pooled).log_softmax(0)[shape])
        expected.append(sum(costs) / len(costs) if costs else torch.zeros(()))
    terms = objective.image_terms(output_of(slots), inputs_of(None))
    assert terms is not None
    torch.testing.assert_close(terms.parts["names"], torch.stack(expected))
    torch.testing.assert_close(terms.total_B, 0.4 * torch.stack(expected))
    assert terms.total_B[2].item() == 0
    terms.total_B.sum().backward()
    assert slots.grad is not None
    assert torch.equal(slots.grad[2], torch.zeros(SLOTS, SIZE))


def test_that_the_entropy_is_that_of_every_pixel_and_bounded_by_the_number_of_slots() -> None:
    masks = torch.randn(2, SLOTS, 3, 5, generator=seeded(3)).softmax(dim=1)
    expected = [
        sum(-float(m) * math.log(float(m)) for m in masks[i].flatten()) / 15
        for i in range(2)
    ]  # fmt: skip
    assert mask_entropy(masks).tolist() == pytest.approx(expected, rel=1e-5)
    assert mask_entropy(torch.full((1, SLOTS, 2, 2), 1 / SLOTS)).item() == pytest.approx(math.log(SLOTS))
    assert built(entropy=0.3).image_terms(output_of(slots_of(2), masks), torch.zeros(2, 3)).total_B.tolist() == pytest.approx(  # type: ignore[union-attr]
        [0.3 * one for one in expected], rel=1e-5
    )


def test_that_hard_masks_have_no_entropy_and_a_finite_gradient() -> None:
    logits = torch.tensor([0.0, 300.0, -300.0]).view(1, 3, 1, 1).requires_grad_()
    entropy = mask_entropy(logits.softmax(dim=1))
    entropy.sum().backward()
    assert entropy.tolist() == [0]
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("name", [*ALL, "all"])
def test_that_a_term_without_weight_has_neither_parameters_nor_parts(name: str) -> None:
    weights = ALL if name == "all" else {name: ALL[name]}
    objective, inputs = built(**weights), inputs_of(text_of())
    heads = {one.split("_head")[0] for one, _ in objective.named_parameters()}
    assert heads == weights.keys() - {"entropy"}
    image = objective.image_terms(output_of(slots_of()), inputs)
    pooled = objective.slot_terms(slots_of(), step=1, text_BT=objective.pooled_text(inputs))
    assert set(pooled.parts) | (set(image.parts) if image else set()) == weights.keys()
    assert objective.pools_batch is ("contrastive" in weights)
    assert (objective.pooled_text(inputs) is None) is ("contrastive" not in weights)


def test_that_the_weighted_terms_of_an_image_add_up() -> None:
    terms = built(**ALL).image_terms(output_of(slots_of()), inputs_of(text_of()))
    assert terms is not None
    torch.testing.assert_close(terms.total_B, torch.stack([ALL[name] * value for name, value in terms.parts.items()]).sum(dim=0))


def test_that_gradient_reaches_slots_masks_and_every_head_but_not_the_text() -> None:
    objective, slots, text = built(**ALL), slots_of(), text_of()
    logits = torch.randn(IMAGES, SLOTS, 3, 5, generator=seeded(3)).requires_grad_()
    image = objective.image_terms(output_of(slots, logits.softmax(dim=1)), inputs_of(text))
    assert image is not None
    image.total_B.sum().backward()
    objective.slot_terms(slots, step=1, text_BT=text).total.backward()
    for reached in (slots, logits, *objective.parameters()):
        assert reached.grad is not None
        assert float(reached.grad.abs().sum()) > 0
    assert text.grad is None


@pytest.mark.parametrize("name", ["contrastive", "text", "names"])
def test_that_each_term_reaches_the_slots_by_itself(name: str) -> None:
    objective, slots, inputs = built(**{name: 1.0}), slots_of(), inputs_of(text_of())
    if name == "contrastive":
        objective.slot_terms(slots, step=1, text_BT=objective.pooled_text(inputs)).total.backward()
    else:
        image_part(objective, name, slots, inputs).sum().backward()
    assert slots.grad is not None
    assert bool((slots.grad[[0, 1, 3, 4]].abs().sum(dim=2) > 0).all())  # every slot of every image that names something


def test_that_the_order_of_slots_does_not_matter() -> None:
    objective, slots, inputs = built(**ALL), slots_of(), inputs_of(text_of())
    order = torch.stack([torch.randperm(SLOTS, generator=seeded(i)) for i in range(IMAGES)])
    assert len({tuple(row) for row in order.tolist()}) > 1
    rows = torch.arange(IMAGES)[:, None]
    output = output_of(slots)
    shuffled = output._replace(slots_BKD=slots[rows, order], masks_BKHW=output.masks_BKHW[rows, order])
    one, other = objective.image_terms(output, inputs), objective.image_terms(shuffled, inputs)
    assert one is not None
    assert other is not None
    for name in one.parts:
        torch.testing.assert_close(one.parts[name], other.parts[name])
    text = objective.pooled_text(inputs)
    pooled = [objective.slot_terms(given.slots_BKD, step=1, text_BT=text).total for given in (output, shuffled)]
    torch.testing.assert_close(*pooled)


def test_that_bf16_autocast_changes_no_term() -> None:
    objective, slots, inputs = built(**ALL), slots_of(), inputs_of(text_of())

    def found() -> dict[str, Tensor]:
        image = objective.image_terms(output_of(slots), inputs)
        assert image is not None
        pooled = objective.slot_terms(slots, step=1, text_BT=objective.pooled_text(inputs))
        return image.parts | pooled.parts | {"images": image.total_B, "batch": pooled.total}

    outside = found()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = found()
    for name in outside:
        assert inside[name].dtype == torch.float32
        assert torch.equal(outside[name], inside[name]), name


def test_that_heads_are_drawn_from_their_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = built(**ALL).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(4)
    again = built(**ALL).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("name", ["contrastive", "text"])
def test_that_inputs_without_sentences_are_refused_in_words(name: str) -> None:
    objective, slots = built(**{name: 1.0}), slots_of()
    for inputs in (inputs_of(None), torch.zeros(IMAGES, 2, 3)):
        with pytest.raises(ValueError, match="need sentences, but the model's inputs hold no text"):
            objective.image_terms(output_of(slots), inputs) if name == "text" else objective.pooled_text(inputs)


def test_that_what_else_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match=r"objective\.names needs the named objects"):
        built(names=1.0).image_terms(output_of(slots_of()), inputs_of(text_of(), names=None))
    with pytest.raises(ValueError, match=r"text \[5, 3, 7\] of tokens' features comes without its padding"):
        built(text=1.0).image_terms(output_of(slots_of()), inputs_of(torch.zeros(IMAGES, 3, TEXT)))
    with pytest.raises(ValueError, match=r"objective\.contrastive needs sentences"):
        built(contrastive=1.0).slot_terms(slots_of(), step=1)


@pytest.mark.parametrize("name", ["contrastive", "text", "names"])
def test_that_a_model_without_language_is_refused_in_words(name: str) -> None:
    with pytest.raises(ValueError, match=r"need model\.kind language_slots"):
        build_objective(SemanticObjective(**{name: 1.0}), slot_size=SIZE, num_slots=SLOTS, generator=seeded(0))
