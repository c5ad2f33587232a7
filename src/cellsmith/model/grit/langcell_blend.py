"""How similarity and matching become one row of probabilities, and the choices that go into it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from cellsmith._errors import SetupError, nearest

__all__ = ["LangCellSettings", "blend"]

MATCHES = ("single", "double")


def blend(
    similarity: Tensor, classes: Tensor, log_match: Tensor, *, similarity_share: float = 0.5, match: str = "single"
) -> Tensor:
    """Blend similarities with matches.

    Matches become probabilities over the k matched classes and share out what these had of the similarity; the other
    classes keep theirs, so that rows still sum to one and matching says nothing about what it has not seen.

    Parameters
    ----------
    similarity
        ``(n, C)`` rows that sum to one.
    classes
        ``(n, k)`` the matched classes of every cell.
    log_match
        ``(n, k)`` log p(match).
    similarity_share
        Weight of the similarity, from 0 to 1.
    match
        "single" divides p(match) by its sum. "double" is the published softmax of p(match), which is one softmax too
        many: with k = C its values lie in ``[1 / (1 + (C - 1) e), e / (e + C - 1)]``, nearly flat.

    Returns
    -------
    ``(n, C)`` rows that sum to one.
    """
    share = F.softmax(log_match if match == "single" else log_match.exp(), dim=-1)
    mass = similarity.gather(1, classes).sum(dim=1, keepdim=True)
    matched = similarity.scatter(1, classes, mass * share)
    return similarity_share * similarity + (1.0 - similarity_share) * matched


@dataclass(frozen=True, kw_only=True)
class LangCellSettings:
    """Choices of `LangCell.from_local` beyond files and device; see there.

    Raises
    ------
    SetupError
        If one is out of its range.
    """

    similarity_share: float = 0.5
    match: str = "single"
    match_top: int | None = 5
    match_margin: float = 0.2
    similarity_temperature: float = 0.05
    batch_size: int = 32
    layer: str | None = None
    gene_key: str | None = None

    def __post_init__(self) -> None:
        if self.match not in MATCHES:
            raise SetupError(f"match={self.match!r}. {nearest(self.match, MATCHES)}")
        wanted = {
            "similarity_share": (0.0 <= self.similarity_share <= 1.0, "a number from 0 to 1, such as 0.5"),
            "match_top": (self.match_top is None or self.match_top >= 2, "at least 2, or None for all classes"),
            "match_margin": (self.match_margin >= 0.0, "a number from 0, such as 0.2; math.inf matches every cell"),
            "similarity_temperature": (0.0 < self.similarity_temperature < math.inf, "a positive number, such as 0.05"),
            "batch_size": (self.batch_size >= 1, "a positive integer, such as 32"),
        }
        for name, (fine, expected) in wanted.items():
            if not fine:
                raise SetupError(f"{name}={getattr(self, name)!r}; expected {expected}.")
