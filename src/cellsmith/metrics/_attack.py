"""Parts of the privacy report: nearest distances, copies, the membership attack and its control."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from cellsmith._errors import PrivacyError
from cellsmith.metrics._cells import Cells, Space, stack

__all__ = [
    "Attack",
    "attack",
    "auc",
    "bootstrap",
    "check_disjoint",
    "copies",
    "distance_ratio",
    "donor_means",
    "halves",
    "nearest",
    "row_keys",
    "share",
]


def nearest(records: np.ndarray, points: np.ndarray, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return distances and indices, (n, k), of the k records nearest to each point."""
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=k).fit(records).kneighbors(points)


def auc(inside: np.ndarray, outside: np.ndarray) -> float:
    """Return the chance that a score of `inside` exceeds one of `outside`, ties counted half."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([inside, outside]))[: len(inside)]
    return float((ranks.sum() - len(inside) * (len(inside) + 1) / 2) / (len(inside) * len(outside)))


def share(to_train: np.ndarray, to_holdout: np.ndarray) -> float:
    """Return the share of points whose first distance is the smaller one, ties counted half."""
    return float((to_train < to_holdout).mean() + 0.5 * (to_train == to_holdout).mean())


def row_keys(counts: sparse.csr_matrix) -> list[bytes]:
    """Return one hashable key a row; equal rows have equal keys."""
    indices = counts.indices.astype(np.int64)
    pairs = zip(counts.indptr[:-1], counts.indptr[1:], strict=True)
    return [indices[a:b].tobytes() + b"|" + counts.data[a:b].tobytes() for a, b in pairs]


def copies(counts: sparse.csr_matrix | None, known: set[bytes], n: int) -> np.ndarray:
    """Return a mask (n,) of the rows that equal a known row; rows without counts equal nothing."""
    if counts is None:
        return np.zeros(n, dtype=bool)
    filled = np.diff(counts.indptr) > 0
    return np.array([key in known for key in row_keys(counts)], dtype=bool) & filled


def check_disjoint(train: Cells, holdout: Cells, donor_key: str | None) -> None:
    """Refuse cells (same name, same counts) or donors that are on both sides."""
    keys = dict(zip(train.names.tolist(), row_keys(train.counts), strict=True))
    own = zip(holdout.names.tolist(), row_keys(holdout.counts), strict=True)
    shared = [name for name, key in own if keys.get(name) == key]
    if shared:
        msg = (
            f"`train` and `holdout` share {len(shared)} cells (first: {', '.join(map(str, shared[:3]))}); every number "
            "of the report would be void. Type `holdout = holdout[~holdout.obs_names.isin(train.obs_names)]`."
        )
        raise PrivacyError(msg)
    if donor_key is None:
        return
    both = sorted((set(train.columns[donor_key]) & set(holdout.columns[donor_key])) - {None})
    if both:
        msg = (
            f"{len(both)} donors are in `train` and in `holdout` (first: {', '.join(both[:3])}); membership of a donor "
            "is then undefined. Split by donor, or type `donor_key=None`."
        )
        raise PrivacyError(msg)


def halves(cells: Cells, donor_key: str | None, generator: np.random.Generator) -> tuple[Cells, Cells]:
    """Split cells into two halves that share no donor where donors are known and more than one."""
    order = generator.permutation(cells.n)
    if donor_key is not None:
        names = sorted({d for d in cells.columns[donor_key] if d is not None})
        if len(names) > 1:
            mine: list[str] = []
            size = np.array([(cells.columns[donor_key] == name).sum() for name in names])
            for k in generator.permutation(len(names)):
                taken = sum(size[names.index(m)] for m in mine)
                if taken + size[k] / 2 <= size.sum() / 2 and len(mine) < len(names) - 1:
                    mine.append(names[k])
            first = np.isin(cells.columns[donor_key], mine or [names[int(np.argmin(size))]])
            return cells.rows(np.flatnonzero(first)), cells.rows(np.flatnonzero(~first))
    middle = cells.n // 2
    return cells.rows(np.sort(order[:middle])), cells.rows(np.sort(order[middle:]))


def donor_means(scores: np.ndarray, donors: np.ndarray) -> np.ndarray:
    """Return the mean score of every donor, in the order of their names."""
    return np.array([scores[donors == name].mean() for name in sorted({d for d in donors if d is not None})])


def bootstrap(inside: np.ndarray, outside: np.ndarray, n: int, generator: np.random.Generator) -> tuple[float, float]:
    """Return the 95 % percentile interval of the AUC over `n` resamplings of members and of non-members."""
    draws = [auc(generator.choice(inside, len(inside)), generator.choice(outside, len(outside))) for _ in range(n)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class Attack:
    """Nearest distances between equal numbers of training and hold-out records and the points under test.

    Parameters
    ----------
    to_train, to_holdout
        Distance of each point to its nearest record, shape (m,).
    inside, outside
        Score of each training and each hold-out record, shape (n,): minus the distance to its nearest point.
    """

    to_train: np.ndarray
    to_holdout: np.ndarray
    inside: np.ndarray
    outside: np.ndarray

    @property
    def share(self) -> float:
        """Share of points nearer to a training record."""
        return share(self.to_train, self.to_holdout)

    @property
    def auc(self) -> float:
        """AUC of the attack on cells."""
        return auc(self.inside, self.outside)


def attack(train: Cells, holdout: Cells, points: Cells, *, n_components: int, seed: int) -> tuple[Attack, Space]:
    """Measure all nearest distances in components of the two sets of records, which must have one size."""
    space = Space.fit(stack(train.log, holdout.log), n_components, seed)
    a, b, z = (space.project(c) for c in (train, holdout, points))
    pairs = ((a, z), (b, z), (z, a), (z, b))
    to_train, to_holdout, inside, outside = (nearest(records, of)[0][:, 0] for records, of in pairs)
    return Attack(to_train, to_holdout, -inside, -outside), space


def distance_ratio(records: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return first over second nearest distance (0 where both vanish) and the nearest record, for each point."""
    distance, index = nearest(records, points, 2)
    first, second = distance[:, 0], distance[:, 1]
    return np.divide(first, second, out=np.zeros_like(first), where=second > 0), index[:, 0]
