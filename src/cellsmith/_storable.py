"""What h5ad and zarr can both hold, and the conversion of everything else that has an obvious form.

Used by `cellsmith._record` alone. Each function returns a checked value or raises `SetupError` with the place
(``where``), what was found there and what to type.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from scipy import sparse

from ._errors import SetupError
from ._keys import check_name

__all__ = ["column", "matrix", "storable"]

_NUMBERS = "biuf"


def storable(value: object, *, where: str = ".uns") -> Any:
    """Return ``value`` in a form that survives h5ad and zarr.

    Parameters
    ----------
    value
        Mappings become dictionaries with string keys, and their entries that are None are left out. Numbers, booleans
        and strings stay. Arrays of numbers or strings, tensors, and lists or tuples of one kind become arrays. A
        DataFrame becomes a mapping of its columns, its index among them unless it merely counts.
    where
        The place, for messages.

    Raises
    ------
    SetupError
        For anything else: None outside a mapping, dates, mixed or ragged lists, keys with a slash, objects.
    """
    if isinstance(value, Mapping):
        return _mapping(value, where)
    if isinstance(value, pd.DataFrame):
        return _mapping(_columns(value, where), where)
    if isinstance(value, str):
        return _text(value, where)
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, Integral):
        if not -(2**63) <= int(value) < 2**63:
            _refuse(where, f"the integer {value}", "at most 64 bits", "str(value)")
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if sparse.issparse(value):
        found: Any = value
        return matrix(found, shape=found.shape, where=where, copy=False)
    return _array(value, where)


def column(values: object, *, index: pd.Index, where: str) -> Any:
    """Return one column of ``.obs``.

    Parameters
    ----------
    values
        One value a cell: numbers, booleans, a Categorical, or strings, which become categorical.
    index
        The names of the cells; a Series must have the same.
    where
        The place, for messages.

    Returns
    -------
    An array, a Categorical or a nullable array of the length of ``index``.

    Raises
    ------
    SetupError
        For another length or order, or values that are not of one storable kind.
    """
    if isinstance(values, pd.Series) and not values.index.equals(index):
        _refuse(where, "a Series with another index", "the obs_names of the object, in order", "series.to_numpy()")
    if isinstance(values, str | Mapping | Real) or not hasattr(values, "__len__"):
        _refuse(where, f"a {type(values).__name__}", f"shape ({len(index)},), one value a cell", "an array")
    array = _array(values, where, missing=True)
    if not hasattr(array, "shape") or array.shape != (len(index),):
        found = f"shape {array.shape}" if hasattr(array, "shape") else f"a {type(values).__name__}"
        _refuse(where, found, f"shape ({len(index)},), one value a cell", "values of that shape")
    if isinstance(array, np.ndarray) and array.dtype.kind == "V":
        _refuse(where, "a structured array", "one number or string a cell", "one field at a time")
    return _categorical(pd.Categorical(array), where) if array.dtype == object else array


def matrix(value: Any, *, shape: tuple[int, int | None], where: str, copy: bool) -> Any:
    """Return a two-dimensional array of numbers, or a CSR or CSC matrix.

    Parameters
    ----------
    value
        Array, tensor or sparse matrix.
    shape
        The expected shape; None stands for any number of columns from 1.
    where
        The place, for messages.
    copy
        Whether a dense array is copied.

    Raises
    ------
    SetupError
        For a DataFrame, another shape, or entries that are no numbers.
    """
    if isinstance(value, pd.DataFrame):
        _refuse(where, "a DataFrame", "an array", "df.to_numpy(), with the names of its columns in .uns")
    if sparse.issparse(value):
        array: Any = value if value.format in ("csr", "csc") else value.tocsr()
    else:
        array = _tensor(value, where)
        array = np.array(array) if copy else np.asarray(array)
        if array.dtype.kind in _NUMBERS and not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
    rows, columns = shape
    if array.ndim != 2 or array.shape[0] != rows or array.shape[1] != (columns or max(array.shape[1], 1)):
        wanted = f"({rows}, {'any number from 1' if columns is None else columns})"
        _refuse(where, f"shape {array.shape}", f"shape {wanted}", "an array of that shape")
    if array.dtype.kind not in _NUMBERS or array.dtype.itemsize > 8:
        _refuse(where, f"entries of dtype {array.dtype}", "numbers of at most 64 bits", "value.astype('float32')")
    return array


def _mapping(value: Mapping[Any, Any], where: str) -> dict[str, Any]:
    stored: dict[str, Any] = {}
    for key, entry in value.items():
        if not isinstance(key, str | Integral):
            _refuse(where, f"the key {key!r} of type {type(key).__name__}", "strings as keys", f"{str(key)!r}")
        name = check_name(str(key), what=f"A key of {where}")
        if name in stored:
            _refuse(where, f"two keys that read {name!r}", "distinct keys", "another name for one of them")
        if entry is not None:
            stored[name] = storable(entry, where=f"{where}[{name!r}]")
    return stored


def _columns(table: pd.DataFrame, where: str) -> dict[Any, Any]:
    """Return the columns of a table, in front of them its index unless that merely counts."""
    columns: dict[Any, Any] = {}
    if not isinstance(table.index, pd.RangeIndex):
        columns[table.index.name or "index"] = table.index
    for position, name in enumerate(table.columns):
        if name in columns:
            _refuse(where, f"two columns {name!r}", "distinct names, also from the index", "df.rename(...)")
        columns[name] = table.iloc[:, position]
    return columns


def _array(value: object, where: str, *, missing: bool = False) -> Any:
    """Return an array, a Categorical or a nullable array; ``missing`` allows None and NaN among strings."""
    value = _tensor(value, where)
    if isinstance(value, pd.MultiIndex):
        _refuse(where, "a MultiIndex", "one column a level", "index.to_frame(index=False)")
    if isinstance(value, pd.Series | pd.Index):
        value = value.array
    if isinstance(value, pd.Categorical):
        return _categorical(value, where)
    if isinstance(value, pd.arrays.IntegerArray | pd.arrays.BooleanArray):
        return value.copy()
    if isinstance(value, pd.api.extensions.ExtensionArray):
        value = np.asarray(value)
    if isinstance(value, np.ma.MaskedArray):
        _refuse(where, "a masked array", "a plain array", "value.filled(np.nan)")
    if isinstance(value, list | tuple | range):
        value = _sequence(value, where)
    if not isinstance(value, np.ndarray):
        _refuse(where, f"a {type(value).__name__}", "a number, string, array or mapping of these", "str(value)")
    if value.ndim == 0:
        return storable(value.item(), where=where)
    kind = value.dtype.kind
    if kind in _NUMBERS and value.dtype.itemsize <= 8:
        return np.array(value, dtype=value.dtype.newbyteorder("="))
    if kind == "V" and value.dtype.names:
        return _structured(value, where)
    if kind in "UTO":
        return _strings(value.astype(object), where, missing)
    _refuse(where, f"an array of dtype {value.dtype}", "numbers of at most 64 bits or strings", "value.astype(str)")


def _tensor(value: object, where: str) -> object:
    """Return a torch tensor as an array of its own, and anything else as it is; torch is not imported for it."""
    if not (type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach")):
        return value
    tensor: Any = value.detach().cpu()
    if str(tensor.layout) != "torch.strided":
        _refuse(where, f"a tensor of layout {tensor.layout}", "a dense tensor", "a scipy.sparse.csr_matrix")
    return np.array((tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy())


def _sequence(value: Any, where: str) -> Any:
    """Return a list or tuple as an array whose entries are all numbers or all strings."""
    try:
        array = np.array(value)
    except ValueError:
        _refuse(where, "a ragged list", "entries of one length", "a mapping with one array an entry")
    objects = np.array(value, dtype=object)
    if array.dtype.kind == "U" and not all(isinstance(entry, str) for entry in objects.flat):
        _refuse(where, "a list that mixes strings with other values", "one kind", "[str(v) for v in value]")
    return objects if array.dtype.kind == "U" else array


def _strings(value: Any, where: str, missing: bool) -> Any:
    kept = value[~pd.isna(value)] if missing and value.ndim == 1 else value
    for entry in kept.flat:
        if not isinstance(entry, str):
            _refuse(where, f"the entry {entry!r} of type {type(entry).__name__}", "strings only", "value.astype(str)")
        _text(entry, where)
    return np.array(value, dtype=object)


def _structured(value: Any, where: str) -> Any:
    for name in value.dtype.names:
        check_name(name, what=f"A field of {where}")
        if value.dtype[name].kind not in _NUMBERS + "UO" or value.dtype[name].shape:
            _refuse(where, f"the field {name!r} of dtype {value.dtype[name]}", "numbers or strings", "a mapping")
        if value.dtype[name].kind in "UO":
            _strings(value[name].astype(object), where, False)
    return value.copy()


def _categorical(value: pd.Categorical, where: str) -> pd.Categorical:
    categories = value.categories
    if len(categories) == 0 or categories.dtype == object or isinstance(categories.dtype, pd.StringDtype):
        names = _strings(categories.to_numpy(dtype=object), where, False)
        # What anndata gives when it reads them: the dtype that this version of pandas infers, and object for none.
        return value.rename_categories(pd.Index(names) if len(names) else pd.Index([], dtype=object))
    if getattr(categories.dtype, "kind", "") not in _NUMBERS or not isinstance(categories.dtype, np.dtype):
        _refuse(where, f"categories of dtype {categories.dtype}", "strings or numbers", "values.astype(str)")
    return value.copy()


def _text(value: str, where: str) -> str:
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        _refuse(where, f"the string {value!r}", "text without NUL and without half surrogate pairs", "another string")
    return str(value)


def _refuse(where: str, found: str, expected: str, remedy: str) -> NoReturn:
    raise SetupError(f"{where} has {found}; expected {expected}. Type {remedy}.")
