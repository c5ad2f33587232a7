"""What error messages say: the valid names, the closest first, and in the type in which they are to be typed."""

from __future__ import annotations

import numpy as np
import pytest

from cellsmith._errors import nearest


@pytest.mark.parametrize(
    ("name", "valid", "says"),
    [
        ("batch_kye", ["batch_key", "layer"], "Did you mean 'batch_key'? Valid: 'batch_key', 'layer'."),
        ("zzz", ["batch_key", "layer"], "Valid: 'batch_key', 'layer'."),
        ("x", [], "Valid: (none)."),
        ("1", np.array([0, 1]), "Those are integers: type 1, not '1'. Valid: 0, 1."),
        (np.str_("1"), [0, 1], "Those are integers: type 1, not '1'. Valid: 0, 1."),
        ("0.5", np.array([0.5, 2.0]), "Those are numbers: type 0.5, not '0.5'. Valid: 0.5, 2.0."),
        ("True", np.array([True, False]), "Those are true or false: type True, not 'True'. Valid: True, False."),
        (1, np.array(["0", "1"]), "Those are text: type '1', not 1. Valid: '0', '1'."),
        (np.int64(1), np.array(["0", "1"], dtype=object), "Those are text: type '1', not 1. Valid: '0', '1'."),
        ("12", np.array([120, 3]), "Did you mean 120? Valid: 120, 3."),
        (7, np.array([0, 1]), "Valid: 0, 1."),
        ("batch", ["_scvi_batch", "donor", "_scvi_labels"], "Valid: 'donor'."),
    ],
)
def test_hint_names_what_to_type(name: object, valid: object, says: str) -> None:
    assert nearest(name, valid) == says


def test_long_lists_are_cut() -> None:
    assert nearest("q", [f"gene {i}" for i in range(25)]).endswith("'gene 19', ....")
