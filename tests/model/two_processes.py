"""Train one small model on two processes, and check it; a program of its own, started by ``test_base.py``.

In an interpreter of its own because a process that has started threads (OpenMP, numba, the autograd engine) must not be
forked: the child waits for locks whose owners do not exist in it. Within a suite some earlier test has always done so.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from conftest import build, make_toy, train


def check(strategy: str) -> None:
    """Train with ``strategy`` and compare with what one process would give."""
    trained = train(build(make_toy(80, 20)), epochs=2, devices=2, strategy=strategy)
    assert trained.is_trained
    assert trained.trainer.world_size == 2
    assert not any("EarlyStopping" in type(c).__name__ for c in trained.trainer.callbacks)
    assert len(trained.history_["autoencode/validation_loss"]) == 2
    assert np.isfinite(trained.get_latent_representation()).all()
    new, real = trained.generate(50), trained.adata.X.sum(axis=1)
    assert new.obs["scld_library"].max() < 3 * real.max()
    state = trained.module.state_dict()
    last = [k.removeprefix("denoiser.") for k in state if k.startswith("denoiser.") and k.endswith("weight")][-1]
    average, raw = state[f"ema_denoiser.{last}"], state[f"denoiser.{last}"]
    assert average.abs().sum() > 0
    assert not torch.equal(average, raw)


if __name__ == "__main__":
    check(sys.argv[1])
    print("two processes trained one model")  # noqa: T201 - what the caller looks for
