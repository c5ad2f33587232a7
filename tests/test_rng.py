"""Streams are stable and independent; `isolated` leaves no trace."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellsmith._errors import SetupError
from cellsmith._rng import Streams, isolated, resolve_seed

NAMES = ("split", "init", "batches", "augment", "noise", "sample", "pool")
seeds = st.integers(0, 2**63 - 1)


def _globals() -> tuple[object, ...]:
    numpy_state = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    return (
        random.getstate(),
        numpy_state["pos"],
        numpy_state["key"].tobytes(),
        torch.get_rng_state().numpy().tobytes(),
        torch.initial_seed(),
    )


def test_known_values_never_change():
    streams = Streams(0)
    assert streams.integer("split") == 1962900462
    assert streams.integer("init", 3) == 446266730
    assert streams.numpy("noise").integers(10**9) == 143391771
    assert torch.randint(10**9, (1,), generator=streams.torch("sample")).item() == 684362986


def test_another_process_with_another_hash_seed_draws_the_same():
    code = "from cellsmith._rng import Streams; print([Streams(7).integer(n, 1) for n in ('split', 'init', 'Ä b')])"
    environment = {**os.environ, "PYTHONHASHSEED": "123", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == str([Streams(7).integer(n, 1) for n in ("split", "init", "Ä b")])


def test_importing_the_module_does_not_import_torch():
    code = "import sys, cellsmith._rng as r; r.Streams(0).numpy('init'); assert 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@settings(deadline=None)
@given(seeds, st.lists(st.text(min_size=1), min_size=1, max_size=5), st.lists(st.integers(), max_size=3))
def test_a_stream_depends_on_nothing_but_its_address(seed, names, keys):
    alone = Streams(seed).numpy(names[0], *keys).random(4)
    streams = Streams(seed)
    for name in names[1:]:
        streams.numpy(name).random(3)
        streams.torch(name)
    np.testing.assert_array_equal(streams.numpy(names[0], *keys).random(4), alone)


@settings(deadline=None)
@given(seeds)
def test_addresses_do_not_collide(seed):
    streams = Streams(seed)
    addresses = [(n, *k) for n in NAMES for k in [(), (0,), (1,), (0, 0), (0, 1), (2**32,), (-1,)]]
    addresses += [("1",), ("1, 2",), ("init', 0",), ("1", 2)]
    drawn = {streams.numpy(name, *keys).bytes(16) for name, *keys in addresses}
    assert len(drawn) == len(addresses)
    assert Streams(seed).numpy("init").bytes(16) != Streams(seed ^ 1).numpy("init").bytes(16)


def test_streams_are_uncorrelated():
    draws = np.stack([Streams(0).numpy(name).standard_normal(20_000) for name in NAMES])
    correlation = np.corrcoef(draws) - np.eye(len(NAMES))
    assert np.abs(correlation).max() < 5 / np.sqrt(20_000)


@given(seeds, st.text(min_size=1))
def test_integer_has_31_bits(seed, name):
    assert 0 <= Streams(seed).integer(name) < 2**31


def test_numpy_integers_are_the_same_seed_and_key():
    assert Streams(np.int64(5)) == Streams(5)
    assert Streams(5).integer("init", np.int32(2)) == Streams(5).integer("init", 2)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, "0", None, True])
def test_bad_seed_is_refused(seed):
    with pytest.raises(SetupError, match="expected an integer from 0"):
        Streams(seed)


@pytest.mark.parametrize(("name", "keys"), [("", ()), (3, ()), ("init", (0.5,)), ("init", (True,)), ("init", ("a",))])
def test_bad_address_is_refused(name, keys):
    with pytest.raises(SetupError, match="expected"):
        Streams(0).numpy(name, *keys)


def test_resolve_seed():
    assert resolve_seed(3) == 3
    assert resolve_seed(np.uint8(3)) == 3
    assert resolve_seed(np.random.default_rng(0)) == resolve_seed(np.random.default_rng(0))
    assert resolve_seed(np.random.RandomState(0)) == resolve_seed(np.random.RandomState(0))
    generator = np.random.default_rng(0)
    assert resolve_seed(generator) != resolve_seed(generator)
    assert resolve_seed(None) != resolve_seed(None)
    for rng in (np.random.default_rng(1), None):
        assert 0 <= resolve_seed(rng) < 2**31


@pytest.mark.parametrize("rng", [-1, "0", 1.5, True, [0]])
def test_resolve_seed_refuses(rng):
    with pytest.raises(SetupError, match="expected an integer"):
        resolve_seed(rng)


def test_resolve_seed_leaves_the_globals_alone():
    before = _globals()
    resolve_seed(None)
    assert _globals() == before


@pytest.mark.parametrize("seed", [None, 11])
def test_isolated_restores_every_global(seed):
    before = _globals()
    with isolated(seed):
        random.seed(1)
        np.random.seed(2)  # noqa: NPY002
        torch.manual_seed(3)
        torch.rand(5)
    assert _globals() == before


def test_isolated_restores_after_an_error():
    before = _globals()

    def fail() -> None:
        with isolated(0):
            random.random()
            torch.rand(2)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert _globals() == before


def test_isolated_seeds_inside_and_nests():
    def draw() -> tuple[float, float, float]:
        return random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002

    with isolated(5):
        first = draw()
        with isolated(6):
            other = draw()
        second = draw()
    with isolated(5):
        assert (draw(), draw()) == (first, second)
    assert other not in (first, second)


def test_isolated_refuses_a_bad_seed_untouched():
    before = _globals()
    with pytest.raises(SetupError, match="expected an integer"), isolated(-1):
        pass
    assert _globals() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_isolated_restores_cuda():
    with isolated(0, device="cuda"):
        inside = torch.rand(3, device="cuda").cpu()
    before = torch.cuda.get_rng_state()
    with isolated(0):
        assert torch.equal(torch.rand(3, device="cuda").cpu(), inside)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert Streams(0).torch("init", device="cuda").device.type == "cuda"
