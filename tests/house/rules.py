"""Checkers for the rules of the house; see docs/developer/architecture.md.

A checker takes the path of a file below ``src/cellsmith`` and its source, and
returns one sentence per breach, so that it can be fed with a planted breach.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "cellsmith"
METHODS = ("scld", "scdd", "sce2tm", "scagc", "scsiameseclu", "dpdcan", "grit", "bcpca")

Checker = Callable[[str, str], list[str]]
Function = ast.FunctionDef | ast.AsyncFunctionDef

_BASE = {"_errors", "_keys", "_rng", "_compat", "_lazy", "_storable"}
_CORE = _BASE | {"math", "nn", "data"}
ANY = {"*"}
MAY_IMPORT = {
    "__init__": {"_lazy"},
    **dict.fromkeys(_BASE, _BASE),
    "_record": _BASE,
    "math": _BASE | {"math"},
    "nn": _BASE | {"math", "nn"},
    "data": _CORE,
    "model": _CORE | {"_record", "model"},
    "tl": _CORE | {"_record", "model", "tl"},
    **{name: _BASE | {"_record", "math", name} for name in ("metrics", "pp", "pl")},
    "datasets": _BASE | {"math", "datasets"},
    "benchmark": ANY,
    "demo": ANY,
    "cli": ANY,
}
_ANNDATA = {"anndata", "mudata", "scanpy"}
_LIGHTNING = {"lightning", "pytorch_lightning"}
MAY_NOT_LOAD = {"math": _ANNDATA | _LIGHTNING | {"scvi"}, "nn": _ANNDATA | _LIGHTNING}
HEAVY = {
    "igraph",
    "leidenalg",
    "matplotlib",
    "opacus",
    "ot",
    "pynndescent",
    "seaborn",
    "sklearn",
    "torch_geometric",
    "umap",
}
TREE = {
    "": {"__init__", "_record", "cli", *_BASE}
    | {"demo", "math", "nn", "data", "model", "tl", "pp", "pl", "metrics", "benchmark", "datasets"},
    "math": {"counts", "likelihood", "edm", "transport", "graph", "solve", "gram", "assign", "contrast", "topics"}
    | {"enrichment", "matching", "latent", "ontology", "conformal", "privacy", "missing", "pca"},
    "nn": {"mlp", "heads", "denoiser", "propagation", "autoencoder", "pool"},
    "data": {"checks", "fields", "genes", "splits", "source", "graphs", "panel", "poisson"},
    "model": {"_base", "_stage", "_fitted", "_calibration", "_deviation", *METHODS},
    "metrics": {"synthesis", "privacy", "clustering", "annotation", "missingness", "topics", "distillation"}
    | {"privacy_audit"},
}
MUTATORS = {"pop", "update", "setdefault", "clear", "insert"}
SPACES = {"model", "tl", "pp", "pl", "metrics", "benchmark", "datasets"}
SLOTS = {"X", "obs", "var", "obsm", "varm", "obsp", "varp", "layers", "uns"}
DOOR_WORDS = {"adata", "layer", "batch_key", "key_added", "copy", "overwrite", "rng", "random_state"} | {
    "model_kwargs",
    "train_kwargs",
    "generate_kwargs",
    "distill_kwargs",
}
# signatures that torch, Lightning or scvi-tools own and call themselves
INHERITED = {"forward", "inference", "generative", "loss", "sample", "training_step", "validation_step"} | {
    "register_field",
    "transfer_field",
}
SEEDED = {"default_rng", "Generator", "SeedSequence", "RandomState", "BitGenerator", "PCG64", "Philox"}


def files(below: str = "") -> list[str]:
    """Paths of the Python files of the package, relative to it."""
    return sorted(p.relative_to(PACKAGE).as_posix() for p in (PACKAGE / below).rglob("*.py"))


def read(path: str) -> str:
    """Source of a file of the package."""
    return (PACKAGE / path).read_text(encoding="utf-8")


def _layer(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


def _dotted(node: ast.AST) -> str:
    """``a.b.c`` of an attribute chain; empty where it is none."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def _imports(path: str, source: str) -> Iterator[tuple[str, int, bool, bool]]:
    """Yield (absolute dotted target, line, at module level, for type checkers only)."""
    package = ["cellsmith", *path.split("/")[:-1]]

    def walk(node: ast.AST, top: bool, typing: bool) -> Iterator[tuple[str, int, bool, bool]]:
        if isinstance(node, ast.Import):
            yield from ((a.name, node.lineno, top, typing) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{stem}.{a.name}", node.lineno, top, typing) for a in node.names)
        inner_top = top and not isinstance(node, Function | ast.Lambda)
        for field, value in ast.iter_fields(node):
            guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and field == "body"
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from walk(child, inner_top, typing or guarded)

    yield from walk(ast.parse(source), True, False)


def import_direction(path: str, source: str) -> list[str]:
    """Imports run from the outside in; a method never imports another method."""
    layer, found = _layer(path), []
    allowed = MAY_IMPORT.get(layer, set())
    banned = MAY_NOT_LOAD.get(layer, set())
    for target, line, _, typing in _imports(path, source):
        parts = target.split(".")
        if parts[0] in banned and not typing:
            found.append(f"{path}:{line} imports {parts[0]}, which {layer}/ must not know")
        if parts[0] != "cellsmith" or allowed is ANY or typing:
            continue
        inner = parts[1] if len(parts) > 1 else "__init__"
        if inner not in allowed and inner != "__version__":
            found.append(f"{path}:{line} imports {target}; {layer} may import {sorted(allowed)}")
        mine = path.split("/")[1].removesuffix(".py") if layer == "model" else ""
        if inner == "model" and layer == "model" and parts[2] in METHODS and parts[2] != mine:
            found.append(f"{path}:{line} imports another method, {target}; move what they share into math/ or nn/")
    return found


def heavy_imports(path: str, source: str) -> list[str]:
    """Heavy libraries are imported inside the function that needs them."""
    found = []
    for target, line, top, typing in _imports(path, source):
        if target.split(".")[0] in HEAVY and top and not typing:
            found.append(f"{path}:{line} imports {target} at module level")
        theirs = path.startswith("math/privacy/") and target.startswith("opacus.accountants")
        if target.startswith("opacus") and not theirs:
            found.append(f"{path}:{line} imports {target}; only math/privacy/ may, and only opacus.accountants")
    return found


def file_length(path: str, source: str, *, most: int = 500) -> list[str]:
    """No file above 500 lines."""
    n = len(source.splitlines())
    return [f"{path} has {n} lines, allowed {most}"] if n > most else []


def _code_lines(node: Function, source: list[str]) -> int:
    """Lines of the body that hold code: no docstring, comment or blank line."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    if not body:
        return 0
    lines = source[body[0].lineno - 1 : node.end_lineno]
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in lines)


def function_length(path: str, source: str, *, most: int = 60) -> list[str]:
    """No function above 60 code lines."""
    lines = source.splitlines()
    return [
        f"{path}:{node.lineno} {node.name} has {n} code lines, allowed {most}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, Function) and (n := _code_lines(node, lines)) > most
    ]


def _exported(tree: ast.Module) -> set[str] | None:
    """Names of a literal ``__all__``; None where the module has none."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            try:
                return set(ast.literal_eval(node.value))
            except ValueError:
                return None
    return None


def public(source: str) -> Iterator[tuple[str, ast.AST, ast.ClassDef | None]]:
    """Yield (qualified name, node, owner) of the public functions, classes and methods."""
    tree = ast.parse(source)
    names = _exported(tree)
    for node in tree.body:
        if not isinstance(node, Function | ast.ClassDef):
            continue
        if node.name.startswith("_") or (names is not None and node.name not in names):
            continue
        yield node.name, node, None
        for child in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(child, Function) and (not child.name.startswith("_") or child.name == "__init__"):
                yield f"{node.name}.{child.name}", child, node


def _decorators(node: ast.AST) -> set[str]:
    return {ast.unparse(d).split("(")[0].split(".")[-1] for d in getattr(node, "decorator_list", ())}


def _arguments(node: Function, owner: ast.ClassDef | None) -> tuple[list[str], list[str]]:
    """Positional and keyword-only names, without self or cls."""
    a = node.args
    positional = [x.arg for x in (*a.posonlyargs, *a.args)]
    if owner is not None and "staticmethod" not in _decorators(node):
        positional = positional[1:]
    return positional, [x.arg for x in a.kwonlyargs]


def positional(path: str, source: str, *, most: int = 3) -> list[str]:
    """At most three positional parameters in a public function or method."""
    found = []
    for name, node, owner in public(source):
        if isinstance(node, Function) and not (_internal(path, name) or (owner is not None and node.name in INHERITED)):
            args, _ = _arguments(node, owner)
            if len(args) > most:
                found.append(f"{path}:{node.lineno} {name} takes {len(args)} positional parameters: {args}")
    return found


def doors(path: str, source: str) -> list[str]:
    """A door repeats no parameter of its model beyond two."""
    found = []
    for name, node, _ in public(source):
        if _layer(path) != "tl" or name not in METHODS or name in {"grit", "bcpca"} or not isinstance(node, Function):
            continue
        own = [a for group in _arguments(node, None) for a in group if a not in DOOR_WORDS]
        if len(own) > 2:
            found.append(f"{path}:{node.lineno} door {name} has {len(own)} parameters of its own: {own}")
    return found


def _sections(docstring: str) -> dict[str, str]:
    """Numpydoc sections of a cleaned docstring: title -> text."""
    parts = re.split(r"^([A-Z][A-Za-z ]+)\n-{3,}[ ]*$", docstring, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _described(section: str) -> set[str]:
    names: set[str] = set()
    for line in section.splitlines():
        if line and not line[0].isspace():
            names.update(n.strip().lstrip("*") for n in line.split(":")[0].split(","))
    return names


def _fields(node: ast.ClassDef) -> list[str]:
    return [s.target.id for s in node.body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)]


def _exported_lazily(path: str, name: str) -> bool:
    layer = _layer(path)
    return layer in SPACES and name.split(".")[0] in dir(importlib.import_module(f"cellsmith.{layer}"))


def _internal(path: str, name: str) -> bool:
    """Whether an object lies in a file that starts with an underscore and is not offered by its namespace."""
    return path.split("/")[-1].startswith("_") and not _exported_lazily(path, name)


def _must_list_parameters(path: str, name: str, node: ast.AST) -> bool:
    """Whether a docstring needs its Parameters section: everything users meet, and mathematics beyond a formula."""
    if _layer(path) in {"math", "nn"} or path.endswith("/equations.py"):
        brief = isinstance(node, Function) and len(node.body) <= 3
        same = re.search(r"Parameters.* as in :func:", ast.get_docstring(node) or "")
        return not (_internal(path, name) or brief or same)
    return _exported_lazily(path, name)


def documented(path: str, source: str) -> list[str]:
    """Every public object has a docstring; where users meet it, it describes every parameter and shape."""
    found = []
    for name, node, owner in public(source):
        label, wanted = f"{path}:{node.lineno} {name}", []
        text = ast.get_docstring(node) or ""
        if owner is not None and (node.name == "__init__" or "overload" in _decorators(node)):
            continue
        if isinstance(node, ast.ClassDef):
            init = next((c for c in node.body if isinstance(c, Function) and c.name == "__init__"), None)
            wanted = [a for g in _arguments(init, node) for a in g] if init else []
            if "dataclass" in _decorators(node):
                wanted = [f for f in _fields(node) if not f.startswith("_")]
        elif isinstance(node, Function) and not (owner is not None and node.name in INHERITED):
            wanted = [a for g in _arguments(node, owner) for a in g]
        if not text:
            found.append(f"{label} has no docstring")
            continue
        if not _must_list_parameters(path, name, node):
            continue
        sections = _sections(text)
        known = set().union(*(_described(sections.get(s, "")) for s in ("Parameters", "Attributes")))
        if missing := [w for w in wanted if w not in known]:
            found.append(f"{label} does not describe {missing}")
        arrays = isinstance(node, Function) and any(w in ast.unparse(node.args) for w in ("Tensor", "NDArray"))
        if (
            path.startswith("math/")
            and arrays
            and not re.search(r"\([A-Za-z0-9_]+(, ?[A-Za-z0-9_+ ]*)+\)|scalar", text)
        ):
            found.append(f"{label} gives no shape such as (n, G)")
    return found


def _calls(source: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield _dotted(node.func), node.lineno


def no_print(path: str, source: str) -> list[str]:
    """Messages go to the logger."""
    return [f"{path}:{line} prints" for name, line in _calls(source) if name == "print"]


def no_global_random(path: str, source: str) -> list[str]:
    """Random numbers come from streams; the global generators are left alone."""
    if path == "_rng.py":
        return []
    found = []
    for name, line in _calls(source):
        parts = name.split(".")
        legacy = parts[:2] in (["np", "random"], ["numpy", "random"]) and parts[-1] not in SEEDED
        seeding = (
            name in {"torch.manual_seed", "random.seed", "torch.cuda.manual_seed_all"} or "seed_everything" in name
        )
        if legacy or seeding:
            found.append(f"{path}:{line} calls {name}; take a stream of cellsmith._rng instead")
    return found


def no_label_read(path: str, source: str) -> list[str]:
    """In model/ a label reaches the code through the registry only."""
    found = []
    for node in ast.walk(ast.parse(source)) if _layer(path) == "model" else ():
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "obs":
            index = ast.unparse(node.slice).lower()
            if isinstance(node.ctx, ast.Load) and re.search(r"label|cell_type|celltype", index):
                found.append(f"{path}:{node.lineno} reads .obs[{index}]; ask the registry")
    return found


def _is_anndata(node: ast.AST) -> bool:
    return _dotted(node).split(".")[-1] in {"adata", "mdata", "_adata"}


def _makes_anndata(function: Function) -> bool:
    """Whether ``adata`` is no parameter of the function but the result of a call in it."""
    given = {a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)}
    bound = [n for n in ast.walk(function) if isinstance(n, ast.Assign) and _is_anndata(n.targets[0])]
    return bool(bound) and all(isinstance(n.value, ast.Call) and _dotted(n.targets[0]) not in given for n in bound)


def _slot(node: ast.AST) -> str:
    """Slot of an AnnData variable that ``node`` is or indexes into; empty where none."""
    while isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Attribute) and node.attr in {"loc", "iloc", "at"}:
        node = node.value
    return node.attr if isinstance(node, ast.Attribute) and node.attr in SLOTS and _is_anndata(node.value) else ""


def only_record_writes(path: str, source: str) -> list[str]:
    """Only _record.py changes an AnnData, other than one that the same function has just made."""
    if path == "_record.py":
        return []
    tree, found = ast.parse(source), []
    fresh = {
        id(inner)
        for function in ast.walk(tree)
        if isinstance(function, Function) and _makes_anndata(function)
        for inner in ast.walk(function)
    }
    for node in ast.walk(tree):
        targets: list[ast.AST] = []
        if isinstance(node, ast.Assign | ast.Delete):
            targets = list(node.targets)
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
            targets = [node.func.value]
        for target in targets if id(node) not in fresh else ():
            if path == "data/fields.py" and ast.unparse(target).endswith(".obs[self.attr_key]"):
                continue  # the column of codes that scvi-tools' fields register
            flat = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
            found += [f"{path}:{node.lineno} writes .{_slot(t)} of an AnnData" for t in flat if _slot(t)]
    return found


def method_folder(path: str, source: str) -> list[str]:
    """What equations.py, module.py and model.py of a method may not hold."""
    parts, found = path.split("/"), []
    if parts[0] != "model" or len(parts) < 3:
        return []
    tree = ast.parse(source)
    loaded = {t.split(".")[0] for t, _, _, typing in _imports(path, source) if not typing}
    if parts[2] == "equations.py" and (extra := loaded & (_ANNDATA | _LIGHTNING | {"scvi"})):
        found.append(f"{path} imports {sorted(extra)}; equations are pure")
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and parts[2] == "equations.py" and "Module" in ast.unparse(node):
            found.append(f"{path}:{node.lineno} defines a module; equations are functions")
        if isinstance(node, Function) and parts[2] == "model.py":
            if node.name == "train":
                found.append(f"{path}:{node.lineno} defines its own train")
            if node.args.kwarg is not None and not node.name.startswith("_"):
                found.append(f"{path}:{node.lineno} {node.name} takes **{node.args.kwarg.arg}")
    return found


def in_tree(path: str, source: str = "") -> list[str]:
    """Every file has its place in the tree; a module never shadows a function of its name."""
    parts = path.split("/")
    stem = parts[-1].removesuffix(".py")
    if stem in {"utils", "util", "helpers", "common"}:
        return [f"{path} is named after nothing"]
    found = []
    head = parts[0].removesuffix(".py")
    if head not in TREE[""]:
        found.append(f"{path} is not in the tree of the house")
    inner = parts[1].removesuffix(".py") if len(parts) > 1 else ""
    private = inner == "__init__" or (inner.startswith("_") and head == "metrics")
    if head in TREE and inner and not private and inner not in TREE[head]:
        found.append(f"{path} is not in the tree of {head}/")
    # Only a module beside the lazy namespace can hide a function of it; a folder deeper it cannot.
    beside = head in {"tl", "pp", "pl", "metrics", "benchmark"} and len(parts) == 2
    if beside and any(name == stem for name, *_ in public(source)):
        found.append(f"{path} shadows its function {stem}; name the file _{stem}.py")
    return found


def finished(path: str, source: str) -> list[str]:
    """No stub and no note to oneself."""
    found = []
    lines = source.splitlines()
    for number, line in enumerate(lines, start=1):
        if re.search(r"\b(TODO|FIXME|XXX)\b", line):
            found.append(f"{path}:{number} is a note to oneself: {line.strip()}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function) and "abstractmethod" not in _decorators(node):
            raised = [r for r in ast.walk(node) if isinstance(r, ast.Raise) and r.exc is not None]
            if any("NotImplementedError" in ast.unparse(r) for r in raised):
                found.append(f"{path}:{node.lineno} {node.name} raises NotImplementedError and is not abstract")
    return found


CHECKERS: tuple[Checker, ...] = (
    import_direction,
    heavy_imports,
    file_length,
    function_length,
    positional,
    doors,
    documented,
    no_print,
    no_global_random,
    no_label_read,
    only_record_writes,
    method_folder,
    in_tree,
    finished,
)
