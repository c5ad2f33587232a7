"""Laws of the solver, measured on random graphs: exactness, identities, certificates, steps, invariances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import sparse

from cellsmith._rng import Streams
from cellsmith.benchmark._annotation.peers import label_spreading
from cellsmith.benchmark._store import Store
from cellsmith.math import solve
from cellsmith.math.graph import components

__all__ = ["LAWS", "laws"]

KINDS = ("sym", "rw", "comb")
N_SYSTEMS, N_EXACT, N_CELLS, N_CLASSES = 1_000, 20, 60, 5
EPS = 1e-4
SWEEPS = 5  # of a bound that may cost more


def random_graph(rng: np.random.Generator, n: int = N_CELLS, *, connected: bool = True) -> Any:
    """Return random weights, CSR (n, n); on a ring where the graph must hang together."""
    weights = sparse.random(n, n, density=4.0 / n, rng=rng, format="csr")
    weights = weights + weights.T
    if connected:
        ring = sparse.csr_matrix((np.full(n, 0.1), (np.arange(n), (np.arange(n) + 1) % n)), shape=(n, n))
        weights = weights + ring + ring.T
    weights = sparse.lil_matrix(weights)
    weights.setdiag(0)
    return sparse.csr_matrix(weights)


def _probabilities(rng: np.random.Generator, n: int = N_CELLS) -> np.ndarray:
    return rng.dirichlet(np.full(N_CLASSES, 0.3), size=n)


def _refined(graph: Any, p0: np.ndarray, *, laplacian: str, smoothness_weight: float, **options: Any) -> np.ndarray:
    problem = solve.system(graph, laplacian=laplacian, smoothness_weight=smoothness_weight)
    return problem.restore(solve.solve(problem, problem.right_hand_side(p0), **options).x)


def exactness(rng: np.random.Generator) -> dict[str, float]:
    """Return the largest error of CG and Chebyshev at tol 1e-7 against a dense solve: 3 Laplacians, 3 W."""
    worst = {"cg": 0.0, "chebyshev": 0.0}
    for _ in range(N_EXACT):
        graph, p0 = random_graph(rng), _probabilities(rng)
        zeros = np.where(rng.random(N_CELLS) < 0.2, 0.0, 1.0)
        for fidelity in (np.ones(N_CELLS), rng.uniform(0.1, 3.0, N_CELLS), zeros):
            for kind in KINDS:
                problem = solve.system(graph, laplacian=kind, smoothness_weight=5.0, fidelity=fidelity)
                right = problem.right_hand_side(p0)
                exact = np.linalg.solve(problem.matrix.toarray(), right)
                for solver in worst:
                    if solver == "cg" or fidelity.min() > 0:
                        found = solve.solve(problem, right, solver=solver, tol=1e-7).x
                        worst[solver] = max(worst[solver], float(np.abs(found - exact).max()))
    return {f"exactness, {name}": value for name, value in worst.items()}


def identities(rng: np.random.Generator) -> dict[str, float]:
    """Return the largest violation of each identity over random graphs."""
    worst = dict.fromkeys(("lambda 0", "lambda 1e8", "row sums", "constants", "Correct & Smooth"), 0.0)

    def seen(name: str, found: np.ndarray, expected: np.ndarray | float) -> None:
        worst[name] = max(worst[name], float(np.abs(found - expected).max()))

    for _ in range(N_EXACT):
        graph, p0 = random_graph(rng, connected=False), _probabilities(rng)
        degree, label = np.asarray(graph.sum(axis=1)).ravel(), components(graph)
        for kind in KINDS:
            run = {"laplacian": kind, "solver": "lu"}
            seen("lambda 0", _refined(graph, p0, smoothness_weight=0.0, **run), p0)
            if kind == "sym":
                continue
            smooth, flat = (_refined(graph, p0, smoothness_weight=w, **run) for w in (5.0, 1e8))
            seen("row sums", smooth.sum(axis=1), 1.0)
            seen("row sums", np.clip(smooth, 0.0, 1.0), smooth)
            seen("constants", _refined(graph, np.full_like(p0, 0.2), smoothness_weight=5.0, **run), 0.2)
            share = np.where(degree > 0, degree, 1.0) if kind == "rw" else np.ones(N_CELLS)
            means = np.stack(
                [np.average(p0[label == c], axis=0, weights=share[label == c]) for c in range(label.max() + 1)]
            )
            seen("lambda 1e8", flat, means[label])
        linked = random_graph(rng)
        spread = label_spreading(linked, p0, alpha=5.0 / 6.0)
        seen("Correct & Smooth", _refined(linked, p0, laplacian="sym", smoothness_weight=5.0, solver="lu"), spread)
    return {f"identity, {name}": value for name, value in worst.items()}


def certificates(rng: np.random.Generator) -> dict[str, float]:
    """Stop 1,000 random systems early; count violated bounds and certified labels that differ from the exact ones."""
    violated, differing, certified = 0, 0, 0
    ratios: dict[int, list[float]] = {0: [], SWEEPS: []}
    for k in range(N_SYSTEMS):
        graph, p0 = random_graph(rng), _probabilities(rng)
        fidelity = np.ones(N_CELLS) if k % 2 else rng.uniform(0.1, 3.0, N_CELLS)
        kind = KINDS[k % 3]
        problem = solve.system(graph, laplacian=kind, smoothness_weight=rng.uniform(0.5, 20.0), fidelity=fidelity)
        right = problem.right_hand_side(p0)
        exact = np.linalg.solve(problem.matrix.toarray(), right)
        steps = int(rng.integers(1, 12))
        found = solve.block_cg(problem.apply, right, diag=problem.diag, tol=1e-12, max_iter=steps, strict=False).x
        error = np.abs(found - exact)
        for sweeps, known in ratios.items():
            bound = solve.error_bound(problem.apply, found, right, supersolution=problem.known, sweeps=sweeps)
            violated += int((error > bound + 1e-13).any())
            known.append(float(np.median(bound / np.maximum(error, 1e-15))))
        sure = solve.certified_argmax(found, bound)  # of the sharper bound, which certifies more
        certified += int(sure.sum())
        differing += int((found.argmax(axis=1) != exact.argmax(axis=1))[sure].sum())
    return {
        "certificate, bounds violated": float(violated),
        "certificate, certified labels that differ": float(differing),
        "certificate, labels certified": float(certified),
        "certificate, median bound over error": float(np.median(ratios[0])),
        "certificate, the same after sweeps": float(np.median(ratios[SWEEPS])),
    }


def steps(rng: np.random.Generator) -> dict[str, float]:
    """Return the largest ratio of Chebyshev's error after the a-priori steps to eps times the first error.

    Errors in the norm of the Jacobi-scaled system, in which the number of steps is derived.
    """
    worst = 0.0
    for _ in range(N_EXACT):
        graph, p0 = random_graph(rng), _probabilities(rng)
        for kind, weight in ((kind, weight) for kind in KINDS for weight in (1.0, 5.0, 10.0)):
            problem = solve.system(graph, laplacian=kind, smoothness_weight=weight)
            right = problem.right_hand_side(p0)
            exact = np.linalg.solve(problem.matrix.toarray(), right)
            m = solve.a_priori_steps(problem.condition, EPS)
            options = {"bounds": problem.bounds, "diag": problem.diag, "steps": m, "tol": 1.0, "strict": False}
            found = solve.chebyshev(problem.apply, right, **options).x
            scale = np.sqrt(problem.diag)[:, None]
            norms = [np.linalg.norm(scale * e, axis=0) for e in (found - exact, exact)]
            worst = max(worst, float((norms[0] / norms[1]).max() / EPS))
    return {"steps, error over eps": worst}


def invariances(rng: np.random.Generator) -> dict[str, float]:
    """Return the largest change under permuted cells and classes, and the labels that a scaled graph changes."""
    moved, scaled = 0.0, 0
    for _ in range(N_EXACT):
        graph, p0 = random_graph(rng), _probabilities(rng)
        rows, columns = rng.permutation(N_CELLS), rng.permutation(N_CLASSES)
        for kind in KINDS:
            run = {"laplacian": kind, "smoothness_weight": 5.0, "solver": "cg", "tol": 1e-9}
            found = _refined(graph, p0, **run)
            other = _refined(graph[rows][:, rows], p0[rows][:, columns], **run)
            moved = max(moved, float(np.abs(other - found[rows][:, columns]).max()))
            if kind != "comb":
                scaled += int((_refined(graph * 37.0, p0, **run).argmax(axis=1) != found.argmax(axis=1)).sum())
    return {"invariance, permutation": moved, "invariance, labels changed by a scaled graph": float(scaled)}


LAWS: dict[str, Callable[[np.random.Generator], dict[str, float]]] = {
    "exactness": exactness,
    "identities": identities,
    "certificates": certificates,
    "steps": steps,
    "invariances": invariances,
}
"""Law -> measurement, from a generator to numbers by name."""


class _Run:
    file, seed = "random graphs", 0


def laws(*, store: Store) -> None:
    """Measure what is not in the table yet.

    Parameters
    ----------
    store
        Where the rows go.
    """
    for name, law in LAWS.items():
        if not store.has(task="laws", file=_Run.file, seed=_Run.seed, variant=name):
            store.record("laws", _Run, name, law(Streams(0).numpy("law", *name.encode())))
