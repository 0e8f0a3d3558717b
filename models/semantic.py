"""Owns the terms that tie slots to the sentence that their image comes with; language_slots.md 4 (S01-S03) and 8.

Every term is the same for any order of an image's slots and computes in float32 also under autocast. Text is frozen: no
gradient goes into it. The heads are used in training only.

Legend: B images, K slots, D slot size, P width of the heads, T text features, L text tokens, R learned queries,
C colours, S shapes, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from models.initialisation import Weights
from models.objectives import ImageTerms, Objective, SlotTerms, unit_length
from models.slot_model import ConditionedInputs, Inputs, SlotOutput
from models.spec_language import SemanticObjective

NOT_NAMED = -1
ROLES = 2
"""Source and destination."""


@dataclass(frozen=True, kw_only=True)
class LanguageSizes:
    """What the heads must know of the language."""

    text_size: int
    colours: int
    shapes: int


class SlotPool(nn.Module):
    """R learned queries take a softmax-weighted mean of the LayerNormed slots each."""

    def __init__(self, *, queries: int, slot_size: int, weights: Weights) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(slot_size)
        self.queries_RD = weights.learned_rows(queries, slot_size)

    def forward(self, slots_BKD: Float[Tensor, "B K D"]) -> Float[Tensor, "B R D"]:
        """Logits are plain products: with queries of about unit length they start with a variance of 1."""
        normed_BKD: Tensor = self.norm(slots_BKD)
        weights_BRK = (self.queries_RD @ normed_BKD.transpose(1, 2)).softmax(dim=2)
        return weights_BRK @ normed_BKD


class TextHead(nn.Module):
    """S02: predicts the sentence's feature from the slots: one query, then a two-layer ReLU MLP."""

    def __init__(self, *, slot_size: int, hidden: int, text_size: int, weights: Weights) -> None:
        super().__init__()
        self.pool = SlotPool(queries=1, slot_size=slot_size, weights=weights)
        self.mlp = nn.Sequential(weights.linear(slot_size, hidden), nn.ReLU(inplace=True), weights.linear(hidden, text_size))

    def forward(self, slots_BKD: Float[Tensor, "B K D"], text_BT: Float[Tensor, "B T"]) -> Float[Tensor, " B"]:
        """Squared error, mean over features."""
        predicted_BT: Tensor = self.mlp(self.pool(slots_BKD).squeeze(1))
        return (predicted_BT - text_BT).square().mean(dim=1)


class NamesHead(nn.Module):
    """S03: reads colour and shape of source and destination: a query for each role, the same linear layers for both."""

    def __init__(self, *, slot_size: int, colours: int, shapes: int, weights: Weights) -> None:
        super().__init__()
        self.pool = SlotPool(queries=ROLES, slot_size=slot_size, weights=weights)
        self.colour = weights.linear(slot_size, colours)
        self.shape = weights.linear(slot_size, shapes)

    def forward(self, slots_BKD: Float[Tensor, "B K D"], names_B22: Int[Tensor, "B 2 2"]) -> Float[Tensor, " B"]:
        """-log p(colour) - log p(shape), mean over the roles that the sentence names; 0 where it names none."""
        pooled_B2D = self.pool(slots_BKD)
        named_B2 = (names_B22 != NOT_NAMED).all(dim=2)
        cross_entropy_B2 = _cross_entropy(self.colour(pooled_B2D), names_B22[..., 0]) + _cross_entropy(
            self.shape(pooled_B2D), names_B22[..., 1]
        )
        return (cross_entropy_B2 * named_B2).sum(dim=1) / named_B2.sum(dim=1).clamp_min(1)


def _cross_entropy(logits_B2N: Float[Tensor, "B 2 N"], number_B2: Int[Tensor, "B 2"]) -> Float[Tensor, "B 2"]:
    return F.cross_entropy(logits_B2N.transpose(1, 2), number_B2, ignore_index=NOT_NAMED, reduction="none")


class ContrastiveHead(nn.Module):
    """S01: which sentence goes with which image, over the whole batch.

    A sentence's score with an image is logsumexp over slots of cosine / temperature, so that its softmax over the images is
    the probability of all their slots together: the slot that fits is summed out (MIL-NCE, Miech et al. 2020,
    arXiv 1912.06430). With a small temperature that is nearly the best slot's; unlike a maximum it gives slots gradient in
    proportion to their fit, and slots that are still equal the same one, where a maximum would pick one by rounding error.

    Images with the same sentence (equal features) are neither positives nor negatives of each other: they are masked out, so
    that the loss of an image whose sentence is the only one in the batch is 0.
    """

    def __init__(self, *, slot_size: int, hidden: int, text_size: int, temperature: float, weights: Weights) -> None:
        super().__init__()
        self.temperature = temperature
        self.norm = nn.LayerNorm(slot_size)
        self.slots = weights.linear(slot_size, hidden)
        self.text = weights.linear(text_size, hidden)

    def forward(self, slots_BKD: Float[Tensor, "B K D"], text_BT: Float[Tensor, "B T"]) -> Float[Tensor, ""]:
        """Mean over the batch of the cross-entropies sentence -> image and image -> sentence, halved; nats."""
        images, slots, _ = slots_BKD.shape
        unit_BKP = unit_length(self.slots(self.norm(slots_BKD)))
        sentences_BP = unit_length(self.text(text_BT))
        cosine_BBK = (sentences_BP @ unit_BKP.flatten(0, 1).T).view(images, images, slots)
        score_BB = (cosine_BBK / self.temperature).logsumexp(dim=2)
        own_B = torch.arange(images, device=slots_BKD.device)
        repeated_BB = same_sentence(text_BT) & (own_B[:, None] != own_B)
        allowed_BB = score_BB.masked_fill(repeated_BB, -torch.inf)
        return (F.cross_entropy(allowed_BB, own_B) + F.cross_entropy(allowed_BB.T, own_B)) / 2


def same_sentence(text_BT: Float[Tensor, "B T"]) -> Bool[Tensor, "B B"]:
    """Whether two images have the same sentence, told by equal features (they are rows of one table)."""
    return (text_BT[:, None] == text_BT).all(dim=2)


def mask_entropy(masks_BKHW: Float[Tensor, "B K H W"]) -> Float[Tensor, " B"]:
    """-sum_k m_k log m_k, mean over pixels, in nats: 0 for hard masks, log K for even ones. Its gradient is finite at m = 0."""
    log_BKHW = masks_BKHW.clamp_min(torch.finfo(torch.float32).tiny).log()
    return -(masks_BKHW * log_BKHW).sum(dim=1).flatten(1).mean(dim=1)


def end_of_text(inputs: Inputs) -> Float[Tensor, "B T"]:
    """The sentence's feature: the text itself [B,T], or of tokens' features [B,L,T] the row before the padding.

    Raises ValueError without text, or without the padding of tokens' features.
    """
    text = inputs.text if isinstance(inputs, ConditionedInputs) else None
    if text is None:
        raise ValueError("objective.contrastive and objective.text need sentences, but the model's inputs hold no text")
    if text.dim() == 2:
        return text.detach().float()
    padding_BL = inputs.padding_BL if isinstance(inputs, ConditionedInputs) else None
    if padding_BL is None:
        raise ValueError(f"text {list(text.shape)} of tokens' features comes without its padding, so that its end is unknown")
    last_B = (~padding_BL).sum(dim=1) - 1
    return text[torch.arange(len(text), device=text.device), last_B].detach().float()


class Semantic(Objective):
    """Mean squared error, and each term whose weight is above 0; the others have neither parameters nor cost."""

    def __init__(self, spec: SemanticObjective, *, slot_size: int, language: LanguageSizes | None, weights: Weights) -> None:
        """Raises ValueError when a term about sentences is asked for without `language`."""
        super().__init__()
        self.spec = spec
        self.pools_batch = spec.contrastive > 0
        self.text_head: TextHead | None = None
        self.names_head: NamesHead | None = None
        self.contrastive_head: ContrastiveHead | None = None
        if language is None:
            if spec.contrastive or spec.text or spec.names:
                raise ValueError("objective.contrastive, objective.text and objective.names need model.kind language_slots")
            return
        if spec.contrastive:
            self.contrastive_head = ContrastiveHead(
                slot_size=slot_size,
                hidden=spec.hidden,
                text_size=language.text_size,
                temperature=spec.temperature,
                weights=weights,
            )
        if spec.text:
            self.text_head = TextHead(slot_size=slot_size, hidden=spec.hidden, text_size=language.text_size, weights=weights)
        if spec.names:
            self.names_head = NamesHead(slot_size=slot_size, colours=language.colours, shapes=language.shapes, weights=weights)

    def pooled_text(self, inputs: Inputs) -> Float[Tensor, "B T"] | None:
        """The sentences, for the contrastive term; raises ValueError when it is asked for and there are none."""
        return None if self.contrastive_head is None else end_of_text(inputs)

    def image_terms(self, output: SlotOutput, inputs: Inputs) -> ImageTerms | None:
        """Raises ValueError when a term needs text or names that `inputs` do not hold."""
        parts: dict[str, Tensor] = {}
        weighted: list[Tensor] = []
        with torch.autocast(output.slots_BKD.device.type, enabled=False):
            slots_BKD = output.slots_BKD.float()
            if self.text_head is not None:
                parts["text"] = self.text_head(slots_BKD, end_of_text(inputs))
                weighted.append(self.spec.text * parts["text"])
            if self.names_head is not None:
                names_B22 = inputs.names_B22 if isinstance(inputs, ConditionedInputs) else None
                if names_B22 is None:
                    raise ValueError("objective.names needs the named objects, but the model's inputs hold no names")
                parts["names"] = self.names_head(slots_BKD, names_B22)
                weighted.append(self.spec.names * parts["names"])
            if self.spec.entropy:
                parts["entropy"] = mask_entropy(output.masks_BKHW.float())
                weighted.append(self.spec.entropy * parts["entropy"])
            return ImageTerms(total_B=torch.stack(weighted).sum(dim=0), parts=parts) if weighted else None

    def slot_terms(
        self, slots_BKD: Float[Tensor, "B K D"], *, step: int, text_BT: Float[Tensor, "B T"] | None = None
    ) -> SlotTerms:
        """The contrastive term, if asked for; raises ValueError when it is given no `text_BT`."""
        if self.contrastive_head is None:
            return SlotTerms(total=slots_BKD.new_zeros((), dtype=torch.float32), parts={})
        if text_BT is None:
            raise ValueError("objective.contrastive needs sentences, but there is no text")
        with torch.autocast(slots_BKD.device.type, enabled=False):
            contrastive = self.contrastive_head(slots_BKD.float(), text_BT.detach().float())
            return SlotTerms(total=self.spec.contrastive * contrastive, parts={"contrastive": contrastive})
