"""Every name that cellsmith may write into an AnnData, and the check of ``key_added``.

Names are templates: ``{k}`` stands for ``key_added``. `KEYS` lists them by method; a name that is not in this file
cannot be written (`cellsmith._record.write` refuses it).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeAlias

from ._errors import SetupError, nearest

__all__ = ["KEYS", "SHARED", "SLOTS", "Slots", "check_name", "outputs_of", "resolve", "slots_of", "validate"]

Names: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class Slots:
    """The names one method may write, by slot of AnnData.

    Parameters
    ----------
    obs, obsm, obsp, varm, layers, uns
        Templates; ``{k}`` is replaced by ``key_added``. The block of every method is ``.uns["{k}"]``.
    """

    obs: Names = ()
    obsm: Names = ()
    obsp: Names = ()
    varm: Names = ()
    layers: Names = ()
    uns: Names = ("{k}",)

    def __or__(self, other: Slots) -> Slots:
        """Return the union, names of ``self`` first."""
        joined = {f.name: tuple(dict.fromkeys(getattr(self, f.name) + getattr(other, f.name))) for f in fields(self)}
        return Slots(**joined)


SLOTS: Names = tuple(f.name for f in fields(Slots))

# Facts about the cells and not results: a method that runs again leaves them, and any method may confirm them.
SHARED: frozenset[tuple[str, str]] = frozenset({("obs", "is_synthetic")})

_LABELS = Slots(
    obs=("{k}", "{k}_confidence", "{k}_margin", "{k}_entropy", "{k}_rejected"),
    obsm=("{k}_proba",),
)
_PATTERN = _LABELS | Slots(
    obs=("is_synthetic",),
    obsm=("X_{k}",),
    obsp=("{k}_connectivities", "{k}_distances"),
    varm=("{k}_loadings",),
    layers=("{k}_expected",),
)
_EMBEDDING = Slots(obsm=("X_{k}",), varm=("{k}_loadings",))
_TABLE = Slots()
_SKETCH = Slots(
    obs=("{k}_weight", "{k}_n_source_cells", "{k}_library", "is_synthetic"),
    layers=("{k}_expected", "{k}_log"),
)
_SCE2TM_TABLES = ("enrich", "gsea", "rank", "survival", "n_topics")

KEYS: dict[str, Slots] = {
    "scld": _PATTERN
    | Slots(obs=("{k}_log_density", "{k}_library", "{k}_step", "{k}_fallback"), uns=("{k}", "{k}_evaluation")),
    "scdd": _PATTERN | _SKETCH | Slots(obsm=("{k}_code",)),
    "sketch": _SKETCH,
    "merge_clusters": Slots(obs=("{k}",)),
    "sce2tm": _PATTERN
    | Slots(obs=("{k}_gene_overlap",), obsm=("{k}_mu",), uns=("{k}", *(f"{{k}}_{t}" for t in _SCE2TM_TABLES))),
    "scagc": _PATTERN,
    "scsiameseclu": _PATTERN
    | Slots(
        obs=("{k}_annotation", "{k}_annotation_confidence", "{k}_annotation_rejected"),
        obsm=("{k}_annotation_proba",),
        uns=("{k}", "{k}_markers", "{k}_annotation"),
    ),
    "dpdcan": _PATTERN,
    "dp_pca": _EMBEDDING,
    "dp_kmeans": Slots(obs=("{k}",)),
    "grit": _LABELS
    | Slots(
        obs=("{k}_raw", "{k}_reason", "{k}_rollup"),
        obsp=("{k}_connectivities", "{k}_distances"),
    ),
    "bcpca": _EMBEDDING | Slots(obs=("{k}_overlap", "{k}_observed_rate"), obsm=("X_{k}_mean", "X_{k}_pairwise")),
    "missing_mask": Slots(layers=("{k}",)),
    "bc_neighbors": Slots(obsp=("{k}_connectivities", "{k}_distances")),
    # Doors that write a block of their own beside a method's; their key is "<key>_<what>".
    **{f"sce2tm_{table}": _TABLE for table in _SCE2TM_TABLES},
    "scsiameseclu_markers": _TABLE,
    "scsiameseclu_annotation": Slots(obs=("{k}", "{k}_confidence", "{k}_rejected"), obsm=("{k}_proba",)),
    "scld_evaluation": _TABLE,
}


def check_name(name: object, *, what: str = "The name") -> str:
    """Return ``name`` if h5ad and zarr can both store it, else raise `SetupError`.

    Parameters
    ----------
    name
        A key of ``.uns``, at any depth, or of another slot.
    what
        How the message calls it, for example ``"key_added"``.

    Raises
    ------
    SetupError
        If it is not a string, is empty, has a slash, a backslash, a NUL or half a surrogate pair, consists of dots, or
        starts with two underscores (zarr reserves those).
    """
    fault = None
    if not isinstance(name, str):
        fault = f"of type {type(name).__name__}"
    elif not name.strip():
        fault = "empty"
    elif "/" in name or "\\" in name:
        fault = "not storable: h5ad reads a slash as a folder, and zarr also a backslash"
    elif "\0" in name or any("\ud800" <= letter <= "\udfff" for letter in name):
        fault = "not storable: it contains a NUL or half a surrogate pair"
    elif not name.strip("."):
        fault = "not storable: h5ad and zarr read dots as a folder"
    elif name.startswith("__"):
        fault = "reserved by zarr, as every name that starts with two underscores"
    if fault is None:
        return str(name)
    suggestion = str(name).replace("/", "_").replace("\\", "_").replace("\0", "").strip("._ ") or "my_result"
    raise SetupError(
        f"{what} is {name!r}, which is {fault}; expected a non-empty string without a slash. "
        f"Type for example {suggestion.encode('ascii', 'replace').decode()!r}."
    )


def validate(key_added: object) -> str:
    """Return ``key_added`` if results can be stored under it, else raise `SetupError`.

    Parameters
    ----------
    key_added
        What the user typed.

    Returns
    -------
    The same string.

    Raises
    ------
    SetupError
        For everything that `check_name` refuses, and for names that AnnData or scvi-tools keep for themselves.
    """
    key = check_name(key_added, what="key_added")
    if key == "_index" or key.startswith("_scvi"):
        raise SetupError(
            f"key_added is {key!r}, a name that anndata or scvi-tools uses itself; expected another one. "
            f"Type for example key_added={key.strip('_')!r}."
        )
    return key


def slots_of(method: str) -> Slots:
    """Return the names that ``method`` may write.

    Parameters
    ----------
    method
        A key of `KEYS`.

    Raises
    ------
    SetupError
        If the method is unknown.
    """
    if method not in KEYS:
        raise SetupError(f"The method is {method!r}. {nearest(method, KEYS)}")
    return KEYS[method]


def resolve(method: str, slot: str, name: str, key_added: str) -> str:
    """Return the name that a template stands for.

    Parameters
    ----------
    method
        A key of `KEYS`.
    slot
        One of `SLOTS`.
    name
        A template of that method and slot, such as ``"{k}_library"``.
    key_added
        The user's key.

    Returns
    -------
    For example ``"scld_library"``.

    Raises
    ------
    SetupError
        If the method has no such template in that slot, or the key is not valid.
    """
    key = validate(key_added)
    if slot not in SLOTS:
        raise SetupError(f"The slot is {slot!r}. {nearest(slot, SLOTS)}")
    known = getattr(slots_of(method), slot)
    if name not in known:
        raise SetupError(f"{method!r} has no .{slot}[{name!r}] in _keys.KEYS. {nearest(name, known)}")
    return name.replace("{k}", key)


def outputs_of(method: str, key_added: str) -> frozenset[tuple[str, str]]:
    """Return every (slot, name) that a method may own under a key.

    Parameters
    ----------
    method
        A key of `KEYS`.
    key_added
        The user's key.

    Returns
    -------
    Pairs such as ``("obs", "scld_library")``, without the names of `SHARED`.
    """
    key, slots = validate(key_added), slots_of(method)
    names = {(slot, template.replace("{k}", key)) for slot in SLOTS for template in getattr(slots, slot)}
    return frozenset(names - SHARED)
