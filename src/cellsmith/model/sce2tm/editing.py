"""Which topics differ between two groups, and what cells would look like with other topics (T23-T26)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.special import softmax

from cellsmith import _keys, _record
from cellsmith._errors import SetupError, nearest
from cellsmith._rng import Streams
from cellsmith.model.sce2tm import perturb
from cellsmith.model.sce2tm.coding import positions

__all__ = ["Perturbation", "PerturbationMixin"]

CHUNK = 1024  # cells decoded together
ALL = "all"  # name of the one group where cells are not split


@dataclass(frozen=True, eq=False)
class Perturbation:
    """What an edit of topics does to cells.

    Parameters
    ----------
    logfc
        log2 fold change of normalised expression, groups (or cells, with ``per_cell``) x modelled genes (T26).
    theta_before, theta_after
        Topic proportions, cells x topics, rows sum to 1.
    mu_after
        Edited topic scores, cells x topics; -inf where a share became 0. Topics that were not chosen are untouched.
    topics
        What was applied: groups x chosen topics, the value v or the shift; for "ablate" the share taken away.
    params
        ``op``, ``strength``, ``space``, ``by``, and for a shift ``source``, ``target`` (which training cells, in words)
        and ``pooled``: the groups that took that of all cells.
    """

    logfc: pd.DataFrame
    theta_before: pd.DataFrame
    theta_after: pd.DataFrame
    mu_after: pd.DataFrame
    topics: pd.DataFrame
    params: Mapping[str, Any]
    _obs: pd.DataFrame = field(repr=False)
    _provenance: Mapping[str, Any] = field(repr=False)
    _expression: Callable[[], np.ndarray] = field(repr=False)

    def to_adata(self) -> AnnData:
        """Return the edited cells; what they came from is not touched.

        Returns
        -------
        AnnData of n cells x V modelled genes. ``.X`` and ``.layers["sce2tm_expected"]`` are the expected expression on
        the 1e4 scale (no counts are drawn), ``.obsm["X_sce2tm"]`` the edited proportions, ``.obs`` the columns of the
        cells with ``is_synthetic``, and ``.uns["sce2tm"]`` says what was done.
        """
        expected = self._expression()
        # a copy: sc.pp.log1p and the like change .X in place, and the layer should stay what it says
        adata = AnnData(X=expected.copy(), obs=self._obs.copy(), var=pd.DataFrame(index=self.logfc.columns))
        # everything that adata got from the real cells stays; what this method wrote about them would be false here
        result = _record.Result(
            method="sce2tm",
            obs={"is_synthetic": np.ones(len(adata), dtype=bool)},
            obsm={"X_{k}": self.theta_after.to_numpy()},
            layers={"{k}_expected": expected},
            uns={
                "params": dict(self.params),
                "classes": np.array(self.theta_after.columns, dtype=object),
                "applied": {
                    "group": np.array(self.topics.index, dtype=object),
                    "topics": np.array(self.topics.columns, dtype=object),
                    "value": self.topics.to_numpy(),
                },
                "provenance": dict(self._provenance),
            },
        )
        _record.write(adata, "sce2tm", result, overwrite=True)
        return adata


class PerturbationMixin:
    """Selection and edits of topics; completes :class:`cellsmith.model.SCE2TM`."""

    def select_topics(
        self,
        groupby: str,
        group: Any,
        reference: Any,
        *,
        adata: Any = None,
        indices: Any = None,
        sample_key: str | None = None,
        test: str = "mannwhitney",
        fdr: float = 0.05,
        min_effect: float = 0.1,
    ) -> pd.DataFrame:
        """Find the topics that differ between two groups of cells (T23).

        Parameters
        ----------
        groupby
            Column of ``.obs``.
        group, reference
            Two of its values; effects are positive where the group has more of a topic.
        adata
            Cells; None is the training object. Only its cells can be the groups of "swap_to_group" later.
        indices
            Positions of the cells to look at, such as those of training; None is all.
        sample_key
            Column of ``.obs`` with the sample (donor) of each cell: the test then sees one mean a sample, at least
            three a side. Cells of one sample are not independent; without it p-values are far too small.
        test
            "mannwhitney" or "permutation".
        fdr
            Largest adjusted p-value (Benjamini-Hochberg over the topics).
        min_effect
            Smallest absolute effect: difference of the means of mu in standard deviations over the training cells.
            Where every type answers with topics of its own, none of them differs by much over all cells.

        Returns
        -------
        One row a topic that passes, largest effect first; columns ``mean_group``, ``mean_reference``, ``difference``
        (of mu), ``effect``, ``p_value``, ``fdr``. Empty if none passes. ``.attrs`` holds what was asked, ``unit``
        ("cell" or "sample"), the cells of both sides and the table of all topics (``tested``).

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            For an unknown column, value or test, an empty group, or a batch that tells the groups apart.
        """
        self._require_trained("select_topics")
        if test not in perturb.TESTS:
            raise SetupError(f"test={test!r}. {nearest(test, perturb.TESTS)}")
        cells = self._object(adata)
        rows = positions(indices, cells.n_obs)
        column = _column(cells, groupby, "groupby").iloc[rows]
        sides = [_members(column, value, groupby) for value in (group, reference)]
        if (sides[0] & sides[1]).any():
            raise SetupError(f"group and reference are both {group!r}; expected two values of .obs[{groupby!r}].")
        samples = None if sample_key is None else _codes(_column(cells, sample_key, "sample_key").iloc[rows])[0]
        mu, codes, _ = self._coded(cells, np.arange(cells.n_obs))
        _refuse_told_by_batch(codes[rows], sides, what=f"groupby={groupby!r}")
        scale = (mu if cells is self.adata else self._encode(self._object(None))[0]).std(axis=0)
        table = perturb.compare_topics(
            mu[rows],
            *sides,
            scale=scale,
            samples=samples,
            test=test,
            generator=Streams(self.seed_ or 0).numpy("sample"),
        )
        frame = pd.DataFrame(table, index=pd.Index(self._topic_names(), name="topic"))
        frame = frame.iloc[np.argsort(-frame["effect"].abs().to_numpy(), kind="stable")]
        kept = frame[(frame["fdr"] < fdr) & (frame["effect"].abs() > min_effect)].copy()
        kept.attrs = {
            "groupby": groupby,
            "group": group,
            "reference": reference,
            "unit": "cell" if sample_key is None else "sample",
            "test": test,
            "fdr": float(fdr),
            "min_effect": float(min_effect),
            # positions in the training object; a foreign object's cells cannot give a shift
            "cells": tuple(tuple(rows[side].tolist()) for side in sides) if cells is self.adata else None,
            "tested": {"topic": frame.index.tolist(), **{name: frame[name].tolist() for name in frame}},
        }
        return kept

    def perturb_topics(
        self,
        adata: Any = None,
        *,
        indices: Any = None,
        topics: Any,
        op: str = "add",
        strength: float = 1.0,
        source: Any = None,
        target: Any = None,
        space: str = "mu",
        by: str | None = None,
        per_cell: bool = False,
        batch_size: int | None = None,
    ) -> Perturbation:
        """Ask what cells would express with other topics (T24-T26).

        Parameters
        ----------
        adata
            Cells; None is the training object. Another object's genes are matched by name, as in :meth:`map_query`.
        indices
            Positions of the cells to edit; None is all.
        topics
            Names of topics, a mapping from name to v, or a frame of :meth:`select_topics`. Names alone stand for
            v = 1 with "add"; a frame gives its ``difference`` there.
        op
            "add": mu_k + s v; "scale": mu_k (1 + s (v - 1)); "set": mu_k + s (v - mu_k); "swap_to_group": mu_k plus s
            times the mean of ``target`` minus the mean of ``source``; "ablate": theta_k (1 - s), renormalised.
        strength
            s; 0 changes nothing.
        source, target
            Of "swap_to_group": masks or positions of training cells. A frame of :meth:`select_topics` carries them
            (source: its reference, target: its group).
        space
            "mu", or "theta": the same on proportions, which are then renormalised ("ablate" always is there).
        by
            Column of ``.obs``: one row of fold changes and one shift a group. A group with fewer than 20 training
            cells on a side takes the shift of all cells, which ``params["pooled"]`` lists.
        per_cell
            Fold changes of single cells instead of groups; up to 2 GB.
        batch_size
            Cells encoded together.

        Returns
        -------
        The edited cells and their fold changes, decoded with each cell's own batch.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        SetupError
            For an unknown topic, operation or column, an empty selection, a strength that is not finite, or groups
            that a batch tells apart.
        SizeError
            For too many fold changes of single cells.
        """
        self._require_trained("perturb_topics")
        names = self._topic_names()
        _check_request(op, strength, space)
        chosen, values = _chosen(topics, op, names)
        cells = self._object(adata)
        rows = positions(indices, cells.n_obs)
        if per_cell:
            perturb.check_size(len(rows), len(self._genes))
        codes, groups = _groups(cells, by, rows)
        pooled, origin = np.zeros(len(groups), dtype=bool), {}
        if op == "swap_to_group":
            sides = self._sides(topics, source, target)
            values, pooled = self._shifts(sides, by, groups, space=space)
            values = values[:, chosen]
            origin = _origin(sides, topics.attrs if source is None and target is None else {})
        else:
            # of "ablate" the share that is taken away is the strength itself
            values = np.tile(np.full(len(chosen), strength) if op == "ablate" else values, (len(groups), 1))
        mu, batch_codes, mass = self._coded(cells, rows, batch_size)
        after = perturb.edit_topics(mu, chosen, values[codes], op=op, strength=strength, space=space)
        theta = [softmax(m.astype(np.float64), axis=1).astype(np.float32) for m in (mu, after)]
        express = self._expression_of(batch_codes, mass)
        obs = _own_columns(cells).iloc[rows]
        logfc = _fold_changes(express, theta, codes, groups=None if per_cell else groups)
        logfc.index = obs.index if per_cell else groups
        logfc.columns = pd.Index(self._genes)
        params = {"op": op, "strength": float(strength), "space": space, "by": by, "topics": [names[k] for k in chosen]}
        params |= {"pooled": [str(g) for g in groups[pooled]], **origin}

        def frame(x: np.ndarray) -> pd.DataFrame:
            return pd.DataFrame(x, index=obs.index, columns=names)

        return Perturbation(
            logfc=logfc,
            theta_before=frame(theta[0]),
            theta_after=frame(theta[1]),
            mu_after=frame(after),
            topics=pd.DataFrame(values, index=groups, columns=[names[k] for k in chosen]),
            params=params,
            _obs=obs,
            _provenance=self._provenance(inputs={"by": by}),
            _expression=lambda: np.concatenate([express(part, theta[1][part]) for part in _chunks(len(rows))]),
        )

    def _object(self, adata: Any) -> Any:
        """Return the cells that are asked about: those given, or the training object."""
        cells = self.adata if adata is None else adata
        if cells is None:
            raise SetupError("This model has no training object. Load it with one: SCE2TM.load(path, adata=adata).")
        return cells

    def _sides(self, topics: Any, source: Any, target: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the masks of source and target over the training cells."""
        carried = topics.attrs.get("cells") if isinstance(topics, pd.DataFrame) else None
        if source is None and target is None and carried is not None:
            target, source = carried
        if source is None or target is None:
            raise SetupError(
                "op='swap_to_group' needs source and target, masks of training cells, or a frame of select_topics on "
                "the training object, which carries them. Type source=mask, target=mask."
            )
        n = self._object(None).n_obs
        masks = [np.isin(np.arange(n), positions(side, n)) for side in (source, target)]
        _refuse_told_by_batch(self._batch_codes(None), masks, what="source and target")
        return masks[0], masks[1]

    def _shifts(
        self, sides: tuple[np.ndarray, np.ndarray], by: str | None, groups: pd.Index, *, space: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the shift of every group over all topics, and which groups take that of all cells."""
        values = self._encode(self.adata)[0 if space == "mu" else 1]
        if by is None:
            codes = np.zeros(len(values), dtype=int)
        else:
            codes = groups.get_indexer(_column(self.adata, by, "by").astype(str))
        return perturb.group_shifts(values, *sides, codes=codes, n_groups=len(groups))


def _refuse_told_by_batch(codes: np.ndarray, sides: Sequence[np.ndarray], *, what: str) -> None:
    if perturb.told_by_batch(codes, *sides):
        raise SetupError(
            f"The registered batch of a cell tells on which side of {what} it is, so the decoder's offsets have "
            "absorbed the difference that topics should show. Set the model up without batch_key (or with one that has "
            "cells on both sides) and train again."
        )


def _origin(sides: Sequence[np.ndarray], selection: Mapping[str, Any]) -> dict[str, str]:
    """Return in words between which training cells a shift was taken, for the record."""
    words = {name: f"{int(mask.sum())} training cells" for name, mask in zip(("source", "target"), sides, strict=True)}
    if selection:
        words["source"] += f" with {selection['groupby']} == {selection['reference']!r}"
        words["target"] += f" with {selection['groupby']} == {selection['group']!r}"
    return words


def _chunks(n: int) -> Iterator[slice]:
    return (slice(i, min(i + CHUNK, n)) for i in range(0, n, CHUNK))


def _fold_changes(
    express: Callable[[slice, np.ndarray], np.ndarray],
    theta: Sequence[np.ndarray],
    codes: np.ndarray,
    *,
    groups: pd.Index | None,
) -> pd.DataFrame:
    """Return fold changes of groups from their mean expression, or of every cell without groups (T26)."""

    def both(part: slice) -> np.ndarray:
        return np.concatenate([express(part, t[part]) for t in theta], axis=1)

    parts = _chunks(len(codes))
    if groups is None:
        blocks = [perturb.log_fold_change(*np.split(both(p), 2, axis=1)).astype(np.float32) for p in parts]
        return pd.DataFrame(np.concatenate(blocks))
    rows = np.arange(len(codes))
    means = perturb.mean_by_group(((rows[p], both(p)) for p in parts), codes, len(groups))
    return pd.DataFrame(perturb.log_fold_change(*np.split(means, 2, axis=1)))


def _check_request(op: str, strength: float, space: str) -> None:
    if op not in perturb.OPERATIONS:
        raise SetupError(f"op={op!r}. {nearest(op, perturb.OPERATIONS)}")
    if space not in perturb.SPACES:
        raise SetupError(f"space={space!r}. {nearest(space, perturb.SPACES)}")
    if not np.isfinite(strength):
        raise SetupError(f"strength={strength!r}; expected a finite number. Type strength=1.0.")
    if op == "ablate" and not 0 <= strength <= 1:
        raise SetupError(f"strength={strength!r}; op='ablate' takes away a share between 0 and 1. Type strength=1.0.")


def _chosen(topics: Any, op: str, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns of the topics and their values v, from the three forms a user may give."""
    given: Mapping[str, float] | None = None
    if isinstance(topics, pd.DataFrame):
        if topics.empty:
            raise SetupError(f"No topic passed the selection. {_largest(topics)}Give names of topics to edit anyway.")
        given = topics["difference"].to_dict() if op == "add" else None
        wanted = list(topics.index)
    elif isinstance(topics, Mapping):
        given, wanted = topics, list(topics)
    else:
        wanted = [topics] if isinstance(topics, str) or not isinstance(topics, Iterable) else list(topics)
    for name in wanted:
        if name not in names:
            raise SetupError(f"topics names {name!r}. {nearest(name, names)}")
    if not wanted or len(set(wanted)) < len(wanted):
        raise SetupError(f"topics={wanted!r}; expected at least one topic, each once. {nearest('', names)}")
    if op in ("scale", "set") and given is None:
        raise SetupError(f"op={op!r} needs a value for each topic. Type topics={{{wanted[0]!r}: 2.0}}.")
    if op in ("ablate", "swap_to_group") and isinstance(topics, Mapping) and given is not None:
        raise SetupError(f"op={op!r} takes no values of topics. Type topics={wanted!r}.")
    values = np.ones(len(wanted)) if given is None else np.array([float(given[name]) for name in wanted])
    if not np.isfinite(values).all():
        raise SetupError(f"topics gives {given!r}; expected finite numbers.")
    return np.array([list(names).index(name) for name in wanted]), values


def _largest(selection: pd.DataFrame) -> str:
    tested = selection.attrs.get("tested", {"topic": [], "effect": []})
    pairs = list(zip(tested["topic"], tested["effect"], strict=True))[:3]
    shown = ", ".join(f"{topic} ({effect:+.2f} sd)" for topic, effect in pairs)
    return f"The largest effects are {shown}. Lower min_effect in select_topics, or raise fdr. " if pairs else ""


def _column(cells: Any, name: str, argument: str) -> pd.Series:
    if name not in cells.obs:
        raise SetupError(f"{argument}={name!r} is not a column of .obs. {nearest(name, cells.obs.columns)}")
    return cells.obs[name]


def _members(column: pd.Series, value: Any, groupby: str) -> np.ndarray:
    mask = (column == value).to_numpy(dtype=bool, na_value=False)
    if not mask.any():
        raise SetupError(f"No cell has .obs[{groupby!r}] == {value!r}. {nearest(value, column.dropna().unique())}")
    return mask


def _codes(column: pd.Series) -> tuple[np.ndarray, pd.Index]:
    """Return the code of every cell, and the values as text."""
    if column.isna().any():
        first = column.index[int(column.isna().argmax())]
        raise SetupError(f".obs[{column.name!r}] of cell {first!r} is missing; expected a value for every cell.")
    codes, values = pd.factorize(column.astype(str), sort=True)
    return codes, pd.Index(values, name=column.name)


def _groups(cells: Any, by: str | None, rows: np.ndarray) -> tuple[np.ndarray, pd.Index]:
    """Return the group of every edited cell, and their names."""
    if by is None:
        return np.zeros(len(rows), dtype=int), pd.Index([ALL], name="group")
    return _codes(_column(cells, by, "by").iloc[rows])


def _own_columns(cells: Any) -> pd.DataFrame:
    """Return the columns of the cells that neither scvi-tools nor this method wrote, under whatever key."""
    written = _keys.outputs_of("sce2tm", "sce2tm").union(
        *(_keys.outputs_of("sce2tm", key) for key in _record.keys_of(cells, "sce2tm"))
    )
    return cells.obs[[c for c in cells.obs if not str(c).startswith("_scvi") and ("obs", c) not in written]]
