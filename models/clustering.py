"""Owns the clustering scores of foreground pixels (adaslot.md 3), each a pure function of one contingency table per image.

Row 0 of a table is the background and left out. An image that does not define a score (no object) has NaN.

Legend: B images, C labels (0 = background), K predicted segments.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import gammaln  # type: ignore[import-untyped]  # scipy ships no annotations
from torch import Tensor

from models.scores import matched_total, pairs

EPSILON = torch.finfo(torch.float64).eps


class PairScores(NamedTuple):
    """Counts of pixel pairs: a pair is positive when both its pixels are in one cluster."""

    precision_B: Float[Tensor, " B"]
    """Share of the pairs in one segment that are in one object; NaN without such pairs."""
    recall_B: Float[Tensor, " B"]
    """Share of the pairs in one object that are in one segment; NaN without such pairs."""
    f1_B: Float[Tensor, " B"]
    """Harmonic mean of an image's precision and recall; NaN where both are 0 or one is undefined."""


def pair_scores(counts_BCK: Int[Tensor, "B C K"]) -> PairScores:
    """Precision, recall and F1 over pairs of foreground pixels, per image."""
    objects_BCK = counts_BCK[:, 1:]
    both_B = pairs(objects_BCK).sum(dim=(1, 2)).double()
    precision_B = both_B / pairs(objects_BCK.sum(dim=1)).sum(dim=1)
    recall_B = both_B / pairs(objects_BCK.sum(dim=2)).sum(dim=1)
    return PairScores(precision_B, recall_B, 2 * precision_B * recall_B / (precision_B + recall_B))


def purity(counts_BCK: Int[Tensor, "B C K"]) -> Float[Tensor, " B"]:
    """Accuracy of foreground pixels under the best one-to-one matching of objects and segments (not the usual max-purity)."""
    objects_BCK = counts_BCK[:, 1:]
    return matched_total(objects_BCK.double()) / objects_BCK.sum(dim=(1, 2))


def nmi(counts_BCK: Int[Tensor, "B C K"]) -> Float[Tensor, " B"]:
    """Normalised mutual information (arithmetic mean of the entropies); 1 for one cluster on both sides."""
    objects_BCK = counts_BCK[:, 1:]
    information_B = _mutual_information(objects_BCK)
    normalised_B = torch.where(information_B == 0, 0.0, information_B / _mean_entropy(objects_BCK))
    return _with_limits(normalised_B, objects_BCK)


def ami(counts_BCK: Int[Tensor, "B C K"]) -> Float[Tensor, " B"]:
    """Adjusted mutual information (Vinh et al. 2010, arithmetic mean); 1 for one cluster on both sides, 0 for one on one side."""
    objects_BCK = counts_BCK[:, 1:]
    expected_B = expected_mutual_information(objects_BCK)
    above_B = _away_from_zero(_mutual_information(objects_BCK) - expected_B)
    largest_B = _away_from_zero(_mean_entropy(objects_BCK) - expected_B)
    one_sided_B = (_clusters(objects_BCK, over=2) == 1) | (_clusters(objects_BCK, over=1) == 1)
    return _with_limits(torch.where(one_sided_B, 0.0, above_B / largest_B), objects_BCK)


def expected_mutual_information(counts_BCK: Int[Tensor, "B C K"]) -> Float[Tensor, " B"]:
    """Mean mutual information, in nats, of random tables with the given marginals (Vinh et al. 2010, eq. 24a).

    A cell's count is hypergeometric, hence a sum of independent indicators: by Bernstein's inequality it lies further than
    8 sd + 40 from its mean with a probability below e^-31, so only the counts nearer than that are summed.
    """
    tables = counts_BCK.cpu().numpy()
    logs = Logarithms.upto(int(tables.sum(axis=(1, 2)).max(initial=0)))
    expected = [_expected(table_CK, logs) for table_CK in tables]
    return torch.tensor(expected, dtype=torch.float64, device=counts_BCK.device)


class Logarithms(NamedTuple):
    """Tables over the whole numbers 0, 1, ... n."""

    number: np.ndarray
    log: np.ndarray
    """0 for 0."""
    log_factorial: np.ndarray

    @classmethod
    def upto(cls, n: int) -> Logarithms:
        """The tables up to n."""
        number = np.arange(n + 1, dtype=np.float64)
        return cls(number, np.log(np.maximum(number, 1)), gammaln(number + 1))


def _expected(table_CK: np.ndarray, logs: Logarithms) -> float:
    rows, columns = table_CK.sum(axis=1).tolist(), table_CK.sum(axis=0).tolist()
    n = sum(rows)
    return float(sum(_expected_term(a, b, n, logs) for a in rows if a for b in columns if b))


def _expected_term(a: int, b: int, n: int, logs: Logarithms) -> float:
    """A cell's part, from its row sum a, its column sum b and n: sum over counts k of k/n log(n k / (a b)) P(k)."""
    mean = a * b / n
    reach = 8 * math.sqrt(mean * (n - a) * (n - b) / (n * max(n - 1, 1))) + 40
    first = max(1, a + b - n, math.floor(mean - reach))
    last = min(a, b, math.ceil(mean + reach))
    if last < first:
        return 0.0
    number, log, factorial = logs
    below = factorial[first : last + 1] + factorial[a - last : a - first + 1][::-1]
    below += factorial[b - last : b - first + 1][::-1]
    below += factorial[n - a - b + first : n - a - b + last + 1]
    above = factorial[a] + factorial[b] + factorial[n - a] + factorial[n - b] - factorial[n]
    probability = np.exp(np.subtract(above, below, out=below), out=below)
    information = log[first : last + 1] + (log[n] - log[a] - log[b])
    information *= number[first : last + 1]
    return float(information @ probability) / n


def _mutual_information(objects_BCK: Tensor) -> Tensor:
    """Of the table, in nats; a cell's share that is lost in rounding counts as 0."""
    share_BCK = objects_BCK / objects_BCK.sum(dim=(1, 2), keepdim=True).double()
    independent_BCK = share_BCK.sum(dim=2, keepdim=True) * share_BCK.sum(dim=1, keepdim=True)
    terms_BCK = torch.where(objects_BCK > 0, share_BCK * (share_BCK / independent_BCK).log(), 0.0)
    return torch.where(terms_BCK.abs() < EPSILON, 0.0, terms_BCK).sum(dim=(1, 2)).clamp(min=0)


def _mean_entropy(objects_BCK: Tensor) -> Tensor:
    """Mean of both clusterings' entropies, in nats."""
    shares = (objects_BCK.sum(dim=over) / objects_BCK.sum(dim=(1, 2))[:, None].double() for over in (2, 1))
    entropies_B = [-torch.xlogy(share, share).sum(dim=1) for share in shares]
    return (entropies_B[0] + entropies_B[1]) / 2


def _clusters(objects_BCK: Tensor, *, over: int) -> Tensor:
    """Clusters that have a pixel: objects (sums over dimension 2) or segments (over dimension 1)."""
    return (objects_BCK.sum(dim=over) > 0).sum(dim=1)


def _with_limits(score_B: Tensor, objects_BCK: Tensor) -> Tensor:
    """1 where both sides have one cluster, NaN where there is no pixel."""
    alike_B = (_clusters(objects_BCK, over=2) == 1) & (_clusters(objects_BCK, over=1) == 1)
    return torch.where(objects_BCK.sum(dim=(1, 2)) == 0, torch.nan, torch.where(alike_B, 1.0, score_B))


def _away_from_zero(value_B: Tensor) -> Tensor:
    """At least one rounding error away from 0, with its sign: a perfect match may be 0 / 0 otherwise."""
    return torch.where(value_B < 0, value_B.clamp(max=-EPSILON), value_B.clamp(min=EPSILON))
