"""Every rule finds a planted breach, and leaves the nearest allowed form alone."""

from __future__ import annotations

import pytest

import rules

LONG_BODY = "\n".join(f"    x{i} = {i}" for i in range(61))
DOC = '"""Do."""'
DOOR = "def scld(adata, *, layer=None, a=0, b=0{}): ..."
BODY = "\n    y = x\n    z = y\n    return z"
SHAPED = 'def f(x: Tensor):\n    """Do.\n\n    Parameters\n    ----------\n    x\n        Counts {}.\n    """' + BODY

# checker, path, a breach, the nearest form that is allowed
PLANTED = [
    (rules.import_direction, "math/edm.py", "import cellsmith.nn.mlp", "from cellsmith._rng import Streams"),
    (rules.import_direction, "math/edm.py", "def f():\n    import anndata", "import numpy"),
    (rules.import_direction, "nn/mlp.py", "from lightning import Trainer", "import torch"),
    (
        rules.import_direction,
        "metrics/privacy.py",
        "from cellsmith.model import SCLD",
        "from cellsmith.math import edm",
    ),
    (rules.import_direction, "tl/_scld.py", "from cellsmith import metrics", "from cellsmith.model import SCLD"),
    (rules.import_direction, "model/scld/model.py", "from cellsmith.tl import scld", "from cellsmith import _record"),
    (
        rules.import_direction,
        "model/scdd/model.py",
        "from cellsmith.model.scld.model import SCLD",
        "from .module import SCDDModule",
    ),
    (rules.import_direction, "model/scdd/model.py", "from ..scld import model", "from .._base import CellModel"),
    (rules.heavy_imports, "math/transport.py", "import ot", "def f():\n    import ot"),
    (rules.heavy_imports, "pl/_a.py", "from matplotlib import pyplot", "def f():\n    from matplotlib import pyplot"),
    (
        rules.heavy_imports,
        "math/privacy/accounting.py",
        "def f():\n    from opacus import PrivacyEngine",
        "def f():\n    from opacus.accountants import RDPAccountant",
    ),
    (rules.file_length, "math/edm.py", "x = 0\n" * 501, "x = 0\n" * 500),
    (
        rules.function_length,
        "math/edm.py",
        f"def f():\n{LONG_BODY}",
        f"def f():\n    {DOC}\n    # why\n{LONG_BODY[:-12]}",
    ),
    (rules.positional, "math/edm.py", "def f(a, b, c, d): ...", "def f(a, b, c, *, d): ...\ndef _g(a, b, c, d): ..."),
    (
        rules.positional,
        "math/edm.py",
        "class A:\n    def f(self, a, b, c, d): ...",
        "class A:\n    def f(self, a, b, c): ...",
    ),
    (rules.doors, "tl/_scld.py", DOOR.format(", c=0"), DOOR.format(", rng=0")),
    (rules.documented, "math/edm.py", "def f(): ...", f"def f():\n    {DOC}"),
    (rules.documented, "math/edm.py", SHAPED.format("(n, G)").replace("f(x", "f(y, x"), SHAPED.format("(n, G)")),
    (rules.documented, "cli.py", "def main(argv): ...", f"def main(argv):\n    {DOC}"),
    (
        rules.documented,
        "math/edm.py",
        f"def f(x):\n    {DOC}{BODY}",
        f'def f(x):\n    """Do.\n\n    Parameters as in :func:`g`.\n    """{BODY}',
    ),
    (rules.documented, "math/edm.py", "def f(x): ...", f"def f(x):\n    {DOC}\n    return x"),
    (rules.documented, "tl/_scld.py", f"def scld(x):\n    {DOC}", f"def _scld(x):\n    {DOC}"),
    (rules.documented, "math/edm.py", SHAPED.format("any"), SHAPED.format("(n,)")),
    (rules.no_print, "cli.py", "print(1)", "sys.stdout.write('1')"),
    (rules.no_global_random, "math/edm.py", "np.random.normal(2)", "np.random.default_rng(2)"),
    (rules.no_global_random, "model/_base.py", "torch.manual_seed(0)", "torch.Generator().manual_seed(0)"),
    (rules.no_label_read, "model/_base.py", "y = adata.obs[labels_key]", "y = adata.obs[batch_key]"),
    (rules.only_record_writes, "tl/_scld.py", "adata.obs['a'] = 1", "new.obs['a'] = 1"),
    (rules.only_record_writes, "tl/_scld.py", "self.adata.uns['k']['a'] = 1", "block = adata.uns['k']['a']"),
    (rules.only_record_writes, "tl/_scld.py", "del adata.obsm['a']", "adata.obsm['a']"),
    (rules.only_record_writes, "tl/_scld.py", "adata.uns.pop('a')", "adata.uns.get('a')"),
    (rules.only_record_writes, "tl/_scld.py", "adata.X = 1", "x = adata.X"),
    (
        rules.only_record_writes,
        "datasets/toys.py",
        "def f(adata):\n    adata = adata.copy()\n    adata.X = 1",
        "def f():\n    adata = AnnData(x)\n    adata.X = 1",
    ),
    (rules.method_folder, "model/scld/equations.py", "import scvi", "import torch"),
    (rules.method_folder, "model/scld/equations.py", "class A(nn.Module): ...", "def elbo(x): ..."),
    (
        rules.method_folder,
        "model/scld/model.py",
        "class A:\n    def train(self): ...",
        "class A:\n    def stages(self): ...",
    ),
    (
        rules.method_folder,
        "model/scld/model.py",
        "class A:\n    def f(self, **kwargs): ...",
        "class A:\n    def f(self, *, a): ...",
    ),
    (rules.in_tree, "misc/edm.py", "", ""),
    (rules.in_tree, "math/odds.py", "", ""),
    (rules.in_tree, "math/utils.py", "", ""),
    (rules.in_tree, "tl/scld.py", "def scld(adata): ...", "def other(adata): ..."),
    (rules.finished, "math/edm.py", "x = 0  # TODO later", "x = 0  # the later of the two"),
    (
        rules.finished,
        "math/edm.py",
        "def f():\n    raise NotImplementedError",
        "@abstractmethod\ndef f():\n    raise NotImplementedError",
    ),
]


@pytest.mark.parametrize(("checker", "path", "breach", "allowed"), PLANTED)
def test_rule_finds_the_breach(checker: rules.Checker, path: str, breach: str, allowed: str) -> None:
    assert checker(path, breach)
    if breach != allowed:  # a misplaced file is a breach whatever it holds
        assert not checker(path, allowed)


def test_every_rule_is_shown_to_fail() -> None:
    assert {checker for checker, *_ in PLANTED} == set(rules.CHECKERS)
