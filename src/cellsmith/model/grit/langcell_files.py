"""The user's LangCell files: where they lie, and how to read them without running what they contain.

Nothing here touches a network. A pickle runs code when it is opened, so that weights go through safetensors or
``torch.load(weights_only=True)``, and dictionaries through JSON or parquet.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cellsmith._errors import MissingExtraError, SetupError, nearest
from cellsmith.math.ontology import Ontology

__all__ = ["class_texts", "convert_pickle", "read_config", "read_dictionary", "read_weights", "require_extra"]

_EXTRA = ("transformers", "tokenizers", "safetensors")
_WEIGHTS = (".safetensors", ".bin", ".pt")
_PICKLES = (".pkl", ".pickle")
_PLAIN = {"bool", "dict", "float", "frozenset", "int", "list", "set", "str", "tuple"}
_SCALAR = {("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar")}


def require_extra() -> None:
    """Check that the packages of ``cellsmith[clip]`` are installed.

    Raises
    ------
    MissingExtraError
        If one is not; the message names it.
    """
    if absent := [name for name in _EXTRA if find_spec(name) is None]:
        raise MissingExtraError(
            f"LangCell needs {', '.join(absent)}, which this environment does not have; expected {', '.join(_EXTRA)}. "
            'Type: pip install "cellsmith[clip]"'
        )


def _existing(folder: Path, stem: str, suffixes: Sequence[str]) -> Path | None:
    return next((path for suffix in suffixes if (path := folder / f"{stem}{suffix}").is_file()), None)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SetupError(f"{path} is not JSON in UTF-8 ({error}). Save it again with json.dump.") from None


def read_config(folder: Path) -> dict[str, Any]:
    """Return the settings of an encoder, ``config.json`` of its folder.

    Raises
    ------
    SetupError
        If the file is missing or holds something else.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise SetupError(f"Found no {path}; expected the settings that the encoder was saved with.")
    found = _json(path)
    if not isinstance(found, dict):
        raise SetupError(f"{path} holds a {type(found).__name__}; expected names and values such as hidden_size.")
    if found.get("position_embedding_type", "absolute") != "absolute":
        raise SetupError(
            f"{path} has position_embedding_type={found['position_embedding_type']!r}; expected 'absolute'."
        )
    return found


def read_weights(folder: Path, stems: Sequence[str], *, required: bool = True) -> dict[str, torch.Tensor]:
    """Return the tensors of a weight file, on the CPU.

    Parameters
    ----------
    folder
        Where it lies.
    stems
        Names that it may have, without suffix; the first that exists is read, safetensors before torch's format.
    required
        Whether a missing file is an error; otherwise the answer is empty.

    Raises
    ------
    SetupError
        If the file is missing, or holds more than tensors.
    """
    path = next((p for stem in stems if (p := _existing(folder, stem, _WEIGHTS)) is not None), None)
    if path is None:
        if not required:
            return {}
        names = ", ".join(f"{stem}{suffix}" for stem in stems for suffix in _WEIGHTS)
        raise SetupError(f"Found no weights in {folder}; expected one file of {names}.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise SetupError(f"{path} is not a safetensors file ({error}). Copy it again from its source.") from None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise SetupError(
            f"{path} does not load with weights_only=True; expected a state dict of tensors. Save it where you trust "
            f"it: safetensors.torch.save_file(model.state_dict(), {path.with_suffix('.safetensors').name!r}). "
            f"First line of the reason: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from None
    if not isinstance(found, Mapping) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise SetupError(f"{path} holds a {type(found).__name__}; expected a state dict, name -> tensor.")
    return dict(found)


def _scalar(dtype: np.dtype, data: Any) -> Any:
    if not isinstance(dtype, np.dtype) or dtype.kind not in "biufU" or not isinstance(data, bytes):
        raise pickle.UnpicklingError("a numpy object")
    return np.frombuffer(data, dtype=dtype, count=1)[0].item()


class _AllowList(pickle.Unpickler):
    """Opens numbers, strings and their containers, and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "builtins" and name in _PLAIN:
            return super().find_class(module, name)
        if (module, name) in _SCALAR:
            return _scalar
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        raise pickle.UnpicklingError(f"{module}.{name}")


def _unpickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _AllowList(file).load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise SetupError(
            f"{path} was not opened: found {error}; expected numbers, strings and their containers only. Ask its "
            "source for JSON."
        ) from None


def convert_pickle(path: str | Path) -> Path:
    """Write a pickled dictionary as JSON beside it, through an unpickler that opens plain values only.

    Parameters
    ----------
    path
        The pickle.

    Returns
    -------
    The path of the JSON file.

    Raises
    ------
    SetupError
        If the pickle holds anything but plain values.
    """
    source = Path(path)
    target = source.with_suffix(".json")
    target.write_text(json.dumps(_unpickle(source)), encoding="utf-8")
    return target


def _parquet(path: Path) -> dict[Any, Any]:
    if find_spec("pyarrow") is None and find_spec("fastparquet") is None:
        raise MissingExtraError(f"Reading {path} needs pyarrow, which is not installed. Type: pip install pyarrow")
    import pandas as pd

    frame = pd.read_parquet(path)
    if frame.shape[1] != 2:
        raise SetupError(f"{path} has {frame.shape[1]} columns; expected two, keys and values.")
    return dict(zip(frame.iloc[:, 0].tolist(), frame.iloc[:, 1].tolist(), strict=True))


def read_dictionary(
    folder: Path, stem: str, *, values: type = Real, allow_pickle: bool = False, required: bool = True
) -> dict[str, Any]:
    """Return a dictionary from ``<stem>.json``, ``<stem>.parquet`` (two columns) or, on request, a pickle.

    Parameters
    ----------
    folder, stem
        Folder, and name of the file without suffix.
    values
        Type of every value.
    allow_pickle
        Open ``<stem>.pkl`` where there is nothing else, by an unpickler that knows plain values only.
    required
        Whether a missing file is an error; otherwise the answer is empty.

    Raises
    ------
    SetupError
        If the file is missing, is a pickle that was not asked for, or has other keys or values.
    MissingExtraError
        If a parquet file is there and nothing that reads it.
    """
    path = _existing(folder, stem, (".json", ".parquet", *_PICKLES))
    if path is None:
        if not required:
            return {}
        raise SetupError(f"Found no {stem} in {folder}; expected {stem}.json or {stem}.parquet.")
    if path.suffix in _PICKLES and not allow_pickle:
        command = f"from cellsmith.model.grit.langcell_files import convert_pickle; convert_pickle({str(path)!r})"
        raise SetupError(
            f"{path} is a pickle, which can run code when it is opened; expected JSON or parquet. Convert it, plain "
            f'values only, with: python -c "{command}" - or pass allow_pickle=True.'
        )
    read = {".json": _json, ".parquet": _parquet}.get(path.suffix, _unpickle)
    found = read(path)
    if not isinstance(found, dict) or not found:
        raise SetupError(
            f"{path} holds {'nothing' if found == {} else f'a {type(found).__name__}'}; expected a dictionary."
        )
    bad = next(
        (
            (k, v)
            for k, v in found.items()
            if not isinstance(k, str) or isinstance(v, bool) or not isinstance(v, values)
        ),
        None,
    )
    if bad is not None:
        raise SetupError(f"{path} has the entry {bad!r}; expected a name and a {values.__name__.lower()}.")
    return found


def class_texts(text: Any, classes: Sequence[str] | None) -> dict[str, tuple[str, ...]]:
    """Return the texts of every class.

    Parameters
    ----------
    text
        Path of a JSON file, or a mapping: class -> text, or several; or an `Ontology`.
    classes
        The classes wanted, in their order; None takes every key. An ontology needs them: identifiers, names or exact
        synonyms.

    Returns
    -------
    Class -> texts, at least one.

    Raises
    ------
    SetupError
        If a class has no text, two classes are one term, or a text is empty.
    """
    if classes is not None and (isinstance(classes, str) or len(set(classes)) != len(classes) or not len(classes)):
        raise SetupError(f"classes={classes!r}; expected different names. Type for example classes=['B cell', 'NK'].")
    if isinstance(text, Ontology):
        return _ontology_texts(text, classes)
    if isinstance(text, str | Path):
        if not Path(text).is_file() or Path(text).suffix != ".json":
            raise SetupError(
                f"text={str(text)!r}; expected a JSON file, class -> text or list of texts. For an ontology, pass what "
                "cellsmith.model.grit.sources.read_ontology(path) returns."
            )
        text = _json(Path(text))
    if not isinstance(text, Mapping):
        raise SetupError(f"text is a {type(text).__name__}; expected a JSON file, a mapping or an Ontology.")
    wanted = list(text) if classes is None else list(classes)
    if absent := [name for name in wanted if name not in text]:
        raise SetupError(f"Found no text for {absent[:5]}. {nearest(absent[0], text)}")
    out = {str(name): (text[name],) if isinstance(text[name], str) else tuple(text[name]) for name in wanted}
    bad = [name for name, given in out.items() if not given or not all(isinstance(t, str) and t.strip() for t in given)]
    if bad or not out:
        raise SetupError(f"The classes {bad[:5]} have an empty text; expected words for every class.")
    return out


def _ontology_texts(ontology: Ontology, classes: Sequence[str] | None) -> dict[str, tuple[str, ...]]:
    if classes is None:
        raise SetupError(
            f"The texts come from an ontology of {len(ontology)} terms; expected the classes to choose from. Type for "
            "example classes=['B cell', 'CL:0000084']."
        )
    terms = {str(name): ontology.find(str(name)) for name in classes}
    if absent := [name for name, term in terms.items() if term is None]:
        raise SetupError(f"Found no term, or two, for {absent[:5]}. {nearest(absent[0], ontology.names.values())}")
    if len(set(terms.values())) < len(terms):
        twice = [name for name, term in terms.items() if list(terms.values()).count(term) > 1]
        raise SetupError(f"The classes {twice} are the same term; expected one class a term.")
    return {
        name: (". ".join(part for part in (ontology.names[term], ontology.definitions.get(term, "")) if part),)
        for name, term in terms.items()
        if term is not None
    }
