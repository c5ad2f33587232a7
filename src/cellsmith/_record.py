"""Writing results into an AnnData and reading them back: the only module that changes one.

`write` validates everything before it touches anything, and puts the object back as it was if something still fails.
The block ``.uns[key]`` records who wrote it and which names it owns (``provenance.method``, ``provenance.outputs``);
that record is what lets a re-run replace its own outputs, and protects those of others.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ._errors import SetupError, SizeError, nearest
from ._keys import KEYS, SHARED, SLOTS, outputs_of, resolve, validate
from ._storable import column, matrix, storable

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Result", "check_free", "extend", "forget_registration", "hash_names", "keys_of", "provenance", "read"]
__all__ += ["storable", "write"]

Address: TypeAlias = tuple[str, str]

_PACKAGES = ("cellsmith", "scvi-tools", "anndata", "scanpy", "torch", "numpy")
_DENSE_LIMIT = 5_000  # cells; a dense cells x cells array above it is never wanted


@dataclass(frozen=True)
class Result:
    """What a method hands to `write`.

    Parameters
    ----------
    method
        A key of `cellsmith._keys.KEYS`.
    obs
        Template (``"{k}_library"``) to values, one a cell; strings become categorical.
    obsm
        Template to an array of shape (cells, columns), at least one column.
    obsp
        Template to a matrix of shape (cells, cells); sparse above 5,000 cells.
    varm
        Template to an array of shape (genes, columns), at least one column.
    layers
        Template to an array or sparse matrix of shape (cells, genes).
    uns
        The block that goes to ``.uns[key]``; see `cellsmith._storable.storable` for what it may hold. Its
        ``"provenance"`` comes from `provenance`; if it has none, `write` adds one.
    extra_uns
        Template to further entries of ``.uns``.
    """

    method: str
    obs: Mapping[str, Any] = field(default_factory=dict)
    obsm: Mapping[str, Any] = field(default_factory=dict)
    obsp: Mapping[str, Any] = field(default_factory=dict)
    varm: Mapping[str, Any] = field(default_factory=dict)
    layers: Mapping[str, Any] = field(default_factory=dict)
    uns: Mapping[str, Any] = field(default_factory=dict)
    extra_uns: Mapping[str, Any] = field(default_factory=dict)


def write(adata: AnnData, key: str, result: Result, *, overwrite: bool = False) -> None:
    """Write a result under a key: everything or nothing.

    A re-run of the same method replaces its own outputs and removes those it no longer has; names in
    `cellsmith._keys.SHARED` stay.

    Parameters
    ----------
    adata
        The object (of a MuData, the modality) that receives the result. A view becomes a copy of its own.
    key
        The user's ``key_added``.
    result
        What to write. Dense arrays are copied; sparse matrices and all of obsp and layers are kept by reference.
    overwrite
        Also replace names that this method did not write, and the whole block of another method.

    Raises
    ------
    SetupError
        For a name that is not in `cellsmith._keys.KEYS`, a shape that does not fit, a value that h5ad or zarr cannot
        hold, and a name that is taken. The object is then untouched.
    SizeError
        For a dense cells x cells array above 5,000 cells.
    """
    key = _check(adata, key)
    plan = _plan(adata, key, result)
    owner, former = _block_of(adata, key)
    if not overwrite:
        _refuse_taken(adata, key, result.method, plan, former if owner == result.method else frozenset())
    plan["uns", key] = _block(adata, key, result, plan)
    _apply(adata, plan, drop=sorted(former - plan.keys()))


def extend(adata: AnnData, key: str, result: Result, *, overwrite: bool = False) -> None:
    """Add to a result that is already there, for a second step such as a rejection: everything or nothing.

    Parameters
    ----------
    adata
        The object that holds the result.
    key
        Its key.
    result
        What to add, of the same method. Its names replace those of the same name and leave the others; the entries
        of ``result.uns`` replace entries of the block, and the block's own provenance stays.
    overwrite
        Also replace names that this method did not write.

    Raises
    ------
    SetupError
        As for `write`, and if the key holds no result of this method.
    SizeError
        As for `write`.
    """
    key = _check(adata, key)
    block = read(adata, key)
    owner, former = _block_of(adata, key)
    if owner != result.method:
        raise SetupError(
            f".uns[{key!r}] was written by {owner or 'another tool'!r}; expected a result of {result.method!r}. "
            f"Run {result.method!r} first, or pass the key it was written to."
        )
    plan = _plan(adata, key, result)
    if not overwrite:
        _refuse_taken(adata, key, result.method, plan, former)
    block.update(storable({k: v for k, v in result.uns.items() if k != "provenance"}, where=f".uns[{key!r}]"))
    block["provenance"]["outputs"] = _texts({*_recorded(block), *plan})
    plan["uns", key] = block
    _apply(adata, plan, drop=[])


def read(adata: AnnData, key: str) -> dict[str, Any]:
    """Return the block that a method wrote.

    Parameters
    ----------
    adata
        The object.
    key
        The ``key_added`` of the method.

    Returns
    -------
    ``.uns[key]`` with fresh dictionaries at every level; the arrays are those of ``adata``.

    Raises
    ------
    SetupError
        If there is no such block, or another tool wrote it.
    """
    blocks = [str(name) for name in adata.uns if _block_of(adata, name)[0] is not None]
    if key not in blocks:
        found = "is not a result of cellsmith" if key in adata.uns else "does not exist"
        raise SetupError(f".uns[{key!r}] {found}; expected the key of a result. {nearest(key, blocks)}")
    return _fresh(adata.uns[key])


def keys_of(adata: AnnData, method: str) -> list[str]:
    """Return the keys of ``.uns`` under which a method has written.

    Parameters
    ----------
    adata
        The object.
    method
        A key of `cellsmith._keys.KEYS`.
    """
    return [str(key) for key in adata.uns if _block_of(adata, key)[0] == method]


def check_free(
    adata: AnnData, key: str, method: str, *, names: Mapping[str, Iterable[str]] = {}, overwrite: bool = False
) -> None:
    """Refuse taken names before a long computation, as `write` would after it.

    Parameters
    ----------
    adata, key, overwrite
        As for `write`.
    method
        A key of `cellsmith._keys.KEYS`.
    names
        Slot to the templates that will be written, beside the block.

    Raises
    ------
    SetupError
        As for `write`.
    """
    key = _check(adata, key)
    planned = [("uns", "{k}"), *((slot, template) for slot, templates in names.items() for template in templates)]
    plan = {(slot, resolve(method, slot, template, key)): None for slot, template in planned}
    owner, former = _block_of(adata, key)
    if not overwrite:
        _refuse_taken(adata, key, method, plan, former if owner == method else frozenset())


def provenance(
    *,
    method: str,
    seed: int | None = None,
    device: object = None,
    dtype: object = None,
    n_obs: float | None = None,
    var_names: Iterable[str] | None = None,
    inputs: Mapping[str, Any] | None = None,
    outputs: Iterable[str] = (),
    histories: Mapping[str, Any] | None = None,
    warnings: Iterable[object] = (),
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the record of how a result came about. It holds no date, so that equal runs leave equal files.

    Parameters
    ----------
    method
        A key of `cellsmith._keys.KEYS`.
    seed
        The integer that all streams derive from.
    device, dtype
        Where and in which precision it ran; a torch device or dtype is stored by its name.
    n_obs
        Number of cells (a private method gives its noisy number).
    var_names
        Gene names in order; stored as their number and their `hash_names`.
    inputs
        Which layer, columns and keys were read.
    outputs
        ``"slot/name"`` of what was written; `write` fills it.
    histories
        ``"<stage>/<metric>"`` to one value an epoch or step; stored as nested mappings, since a slash is no name.
    warnings
        Texts of the warnings given on the way.
    extra
        Further entries.

    Returns
    -------
    A mapping that h5ad and zarr can hold. Entries that are None are left out.

    Raises
    ------
    SetupError
        For a seed that is no integer, an ``extra`` that names an entry of the above, or a value that is not storable.
    """
    if seed is not None and (not isinstance(seed, Integral) or isinstance(seed, bool)):
        raise SetupError(f"The seed to record is {seed!r}; expected an integer. Type resolve_seed(rng).")
    names = None if var_names is None else [str(name) for name in var_names]
    record: dict[str, Any] = {
        "method": method,
        "versions": {package: _version(package) for package in _PACKAGES},
        "seed": seed,
        "device": None if device is None else str(device),
        "dtype": None if dtype is None else _dtype_name(dtype),
        "n_obs": n_obs,
        "n_vars": None if names is None else len(names),
        "var_names_sha256": None if names is None else hash_names(names),
        "inputs": dict(inputs or {}),
        "outputs": np.array(sorted(outputs), dtype=object),
        "histories": _nest(histories or {}),
        "warnings": np.array([str(warning) for warning in warnings], dtype=object),
    }
    taken = sorted(record.keys() & (extra or {}).keys())
    if taken:
        raise SetupError(f"extra names {taken}, which provenance writes itself; expected other names. Rename them.")
    stored: dict[str, Any] = storable({**record, **(extra or {})}, where="provenance")
    return stored


def forget_registration(adata: Any) -> None:
    """Remove the identifier by which scvi-tools knows an object, so that it is registered anew.

    Parameters
    ----------
    adata
        AnnData or MuData that was copied from a registered one.
    """
    adata.uns.pop("_scvi_uuid", None)
    adata.uns.pop("_scvi_manager_uuid", None)


def hash_names(names: Iterable[str]) -> str:
    """Return the SHA-256 of names in order, as 64 hexadecimal digits.

    Parameters
    ----------
    names
        Gene or cell names. Each enters with its length, so that no two lists share a hash by concatenation.
    """
    digest = hashlib.sha256()
    for name in names:
        text = str(name).encode("utf-8", "surrogatepass")
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


# Planning: nothing below changes the object until _apply.


def _check(adata: AnnData, key: str) -> str:
    from anndata import AnnData

    if not isinstance(adata, AnnData):
        raise SetupError(
            f"The object is a {type(adata).__name__}; expected an AnnData. "
            "Of a MuData pass one modality, mdata.mod[name]."
        )
    return validate(key)


def _plan(adata: AnnData, key: str, result: Result) -> dict[Address, Any]:
    """Return what would be written, by (slot, name), with every value checked."""
    n, g = adata.shape
    shapes = {"obsm": (n, None), "obsp": (n, n), "varm": (g, None), "layers": (n, g)}
    plan: dict[Address, Any] = {("uns", resolve(result.method, "uns", "{k}", key)): None}
    for slot in SLOTS:
        for template, value in (result.extra_uns if slot == "uns" else getattr(result, slot)).items():
            name = resolve(result.method, slot, template, key)
            where = f".{slot}[{name!r}]"
            if (slot, name) in plan:
                raise SetupError(f"extra_uns holds {where}, the block itself. Put its entries into uns.")
            if slot == "uns":
                plan[slot, name] = storable(value, where=where)
            elif slot == "obs":
                if name == adata.obs.index.name:
                    raise SetupError(f"{where} has the name of the index of .obs. Type another key_added.")
                plan[slot, name] = column(value, index=adata.obs_names, where=where)
            else:
                plan[slot, name] = matrix(value, shape=shapes[slot], where=where, copy=slot in ("obsm", "varm"))
                if slot == "obsp" and isinstance(plan[slot, name], np.ndarray) and n > _DENSE_LIMIT:
                    raise SizeError(
                        f"{where} is dense, {n:,} x {n:,} ({plan[slot, name].nbytes / 2**30:.1f} GiB); above "
                        f"{_DENSE_LIMIT:,} cells expected a sparse matrix. Type scipy.sparse.csr_matrix(value)."
                    )
    return plan


def _block(adata: AnnData, key: str, result: Result, plan: Mapping[Address, Any]) -> dict[str, Any]:
    """Return the block for ``.uns[key]``, with the outputs of ``plan`` in its provenance."""
    block: dict[str, Any] = storable(result.uns, where=f".uns[{key!r}]")
    record = block.setdefault(
        "provenance", provenance(method=result.method, n_obs=adata.n_obs, var_names=adata.var_names)
    )
    if not isinstance(record, dict) or record.get("method", result.method) != result.method:
        raise SetupError(
            f"The provenance of .uns[{key!r}] is not that of {result.method!r}. "
            f"Type provenance(method={result.method!r}, ...)."
        )
    record["method"] = result.method
    record["outputs"] = _texts(plan)
    return block


def _texts(addresses: Iterable[Address]) -> np.ndarray[Any, np.dtype[np.object_]]:
    return np.array(sorted(f"{slot}/{name}" for slot, name in addresses), dtype=object)


def _recorded(block: object) -> frozenset[Address]:
    """Return the outputs that a block records, whoever wrote it."""
    record = block.get("provenance") if isinstance(block, Mapping) else None
    outputs = record.get("outputs") if isinstance(record, Mapping) else None
    if outputs is None:
        return frozenset()
    pairs = (str(text).partition("/") for text in np.ravel(outputs))
    return frozenset((slot, name) for slot, _, name in pairs)


def _block_of(adata: AnnData, key: str) -> tuple[str | None, frozenset[Address]]:
    """Return the method that wrote ``.uns[key]`` (None if not ours) and the outputs of its that are still there.

    Only names that the method may own count: a record that someone edited must not delete the user's columns.
    """
    block = adata.uns.get(key)
    record = block.get("provenance") if isinstance(block, Mapping) else None
    method = str(record.get("method")) if isinstance(record, Mapping) else None
    if method not in KEYS:
        return None, frozenset()
    owned = outputs_of(method, key) & _recorded(block)
    return method, frozenset(address for address in owned if _exists(adata, *address))


def _exists(adata: AnnData, slot: str, name: str) -> bool:
    return name in getattr(adata, slot)


def _refuse_taken(adata: AnnData, key: str, method: str, plan: Mapping[Address, Any], own: frozenset[Address]) -> None:
    """Raise if a planned name exists and is not this method's own."""
    taken = [address for address in plan if address not in own and _exists(adata, *address)]
    if ("uns", key) in taken and _block_of(adata, key)[0] == method:
        taken.remove(("uns", key))
    everywhere = frozenset[Address]().union(*(_recorded(block) for block in adata.uns.values()))
    taken = [address for address in taken if address not in SHARED & everywhere]
    if not taken:
        return
    slot, name = taken[0]
    owners = [str(k) for k, block in adata.uns.items() if (slot, name) in _recorded(block)]
    by = f"was written under the key {owners[0]!r}" if owners else "was not written by cellsmith"
    if (slot, name) == ("uns", key) and owners:
        by = f"was written by {_block_of(adata, key)[0]!r}"
    more = f" ({len(taken)} names are taken)" if len(taken) > 1 else ""
    raise SetupError(
        f".{slot}[{name!r}] already exists and {by}{more}; expected free names or earlier outputs of {method!r} "
        f"under this key. Type key_added={key + '_2'!r}, or overwrite=True to replace them."
    )


# Changing the object.


def _apply(adata: AnnData, plan: Mapping[Address, Any], *, drop: Iterable[Address]) -> None:
    """Drop and put, or leave the object as it was."""
    drop = list(drop)
    if adata.is_view:
        adata.uns = dict(adata.uns)  # makes it an object of its own, without the warning that item assignment gives
    before: dict[str, Any] = {}
    for slot in dict.fromkeys(slot for slot, _ in [*drop, *plan]):
        # A shallow copy: values are replaced below, never changed in place.
        before[slot] = adata.obs.copy(deep=False) if slot == "obs" else dict(getattr(adata, slot))
    try:
        for slot, name in drop:
            del getattr(adata, slot)[name]
        for (slot, name), value in plan.items():
            _put(adata, slot, name, value)
    except BaseException:
        for slot, values in before.items():
            if slot == "obs":
                adata.obs = values
            else:
                getattr(adata, slot).clear()
                getattr(adata, slot).update(values)
        raise


def _put(adata: AnnData, slot: str, name: str, value: Any) -> None:
    getattr(adata, slot)[name] = value


# Small helpers of provenance.


@cache
def _version(package: str) -> str:
    # The metadata of a package are a file: read once, not at every result.
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(sys.modules.get(package), "__version__", "not installed"))


def _dtype_name(dtype: object) -> str:
    try:
        return np.dtype(dtype).name  # type: ignore[call-overload,no-any-return]
    except TypeError:
        return str(dtype).removeprefix("torch.")


def _nest(histories: Mapping[str, Any]) -> dict[str, Any]:
    """Turn ``{"stage/metric": values}`` into ``{"stage": {"metric": values}}``."""
    nested: dict[str, Any] = {}
    for name, values in histories.items():
        if isinstance(values, Mapping):
            values = _nest(values)
        else:
            # scvi-tools keeps a history as a DataFrame of one column.
            values = values.to_numpy() if hasattr(values, "to_numpy") else values
            values = np.ravel(np.asarray(storable(values, where=f"histories[{name!r}]")))
        *parents, leaf = str(name).split("/")
        level: Any = nested
        for parent in parents:
            level = level.setdefault(parent, {}) if isinstance(level, dict) else None
        if not isinstance(level, dict) or leaf in level:
            raise SetupError(f"The history {name!r} has the name of another one or of a stage. Rename it.")
        level[leaf] = values
    return nested


def _fresh(block: Mapping[str, Any]) -> dict[str, Any]:
    return {str(k): _fresh(v) if isinstance(v, Mapping) else v for k, v in block.items()}
