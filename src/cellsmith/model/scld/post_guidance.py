"""E20: four readings of post-guidance, all off by default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cellsmith._errors import SetupError, nearest
from cellsmith._rng import Streams, isolated
from cellsmith.model.scld.request import Request

__all__ = ["KINDS", "apply_post_guidance"]

Sample = Callable[..., Tensor]

# kind -> its options and their defaults
KINDS: dict[str, dict[str, Any]] = {
    "density_ratio": {"n_candidates": 4, "gradient": False, "scale": 1.0},
    "classifier": {"scale": 1.0},
    "cycle": {"weight": 0.3},
    "reject": {"max_tries": 10},
}
RATIO_RANGE = (0.05, 20.0)


def apply_post_guidance(
    kind: str,
    model: Any,
    *,
    request: Request,
    sample: Sample,
    streams: Streams,
    options: Mapping[str, Any],
) -> tuple[Tensor, dict[str, Any]]:
    """Sample states and correct them.

    Parameters
    ----------
    kind
        A key of :data:`KINDS`.
    model
        The trained SCLD.
    request
        Who is wanted.
    sample
        ``sample(request, *, streams, steer) -> w`` (n, d + 1).
    streams
        Root of the random numbers.
    options
        Options of the kind.

    Returns
    -------
    States (n, d + 1), and what is recorded: ``kind``, ``scale``, ``acceptance``, ``ess``, ``rejected`` where they
    apply.

    Raises
    ------
    SetupError
        For an unknown kind or option, or a classifier that was not trained.
    """
    if kind not in KINDS:
        raise SetupError(f"post_guidance={kind!r}. {nearest(kind, KINDS)}")
    for name in options:
        if name not in KINDS[kind]:
            raise SetupError(f"post_guidance={kind!r} has no option {name!r}. {nearest(name, KINDS[kind])}")
    opts = {**KINDS[kind], **options}
    if kind == "density_ratio":
        run = _density_gradient if opts["gradient"] else _density_ratio
    else:
        run = {"classifier": _classifier, "cycle": _cycle, "reject": _reject}[kind]
    w, info = run(model, request, sample, streams, opts)
    return w, {"kind": kind, **{k: v for k, v in opts.items() if isinstance(v, int | float)}, **info}


def _features(model: Any, w: Tensor, codes: Any, continuous: Any) -> np.ndarray:
    """Return [w, one-hot of every condition, standardised continuous covariates], one row a cell."""
    codes, module = np.asarray(codes), model.module
    blocks = [np.eye(n + 1)[codes[:, k]] for k, n in enumerate(model.covariates.n_cats)]
    if module.n_continuous:
        centre, scale = module.continuous_centre.cpu().numpy(), module.continuous_scale.cpu().numpy()
        blocks.append((np.asarray(continuous) - centre) / scale)
    return np.concatenate([w.numpy(), *blocks], axis=1).astype(np.float32)


def _real_and_generated(model: Any, w: Tensor, request: Request) -> tuple[np.ndarray, np.ndarray, int]:
    """Return features of real and generated states, 1 for the real ones, and how many those are."""
    real = model.training_states()
    n_real = len(real["w"])
    x = [
        _features(model, real["w"], real["codes"], real["continuous"]),
        _features(model, w, request.codes, request.continuous),
    ]
    return np.concatenate(x), np.r_[np.ones(n_real), np.zeros(request.n)], n_real


def _density_ratio(
    model: Any, request: Request, sample: Sample, streams: Streams, opts: Mapping[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    """Resample candidates within condition by a cross-fitted classifier of real against generated states."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedKFold

    m = int(opts["n_candidates"])
    many = _repeat(request, m)
    candidates = sample(many)
    x, y, n_real = _real_and_generated(model, candidates, many)
    probability = np.empty(len(y))
    folds = StratifiedKFold(3, shuffle=True, random_state=streams.integer("sample", -10))
    for train, test in folds.split(x, y):
        classifier = HistGradientBoostingClassifier(
            max_iter=50,
            learning_rate=0.06,
            max_depth=3,
            class_weight="balanced",
            early_stopping=False,
            random_state=streams.integer("sample", -11),
        )
        probability[test] = classifier.fit(x[train], y[train]).predict_proba(x[test])[:, 1]
    p = probability[n_real:]
    ratio = np.clip(p / np.maximum(1 - p, 1e-6), *RATIO_RANGE)
    generator = streams.numpy("sample", -12)
    chosen = np.empty(request.n, dtype=int)
    # A continuous covariate is met only by the candidates that were drawn for that very value.
    member = np.arange(request.n)
    if not model.module.n_continuous:
        member = np.unique(request.codes, axis=0, return_inverse=True)[1].reshape(-1)
    for g in np.unique(member):
        rows = np.flatnonzero(member == g)
        pool = np.concatenate([rows + k * request.n for k in range(m)])
        chosen[rows] = generator.choice(pool, len(rows), p=ratio[pool] / ratio[pool].sum())
    return candidates[chosen], {"ess": float(ratio.sum() ** 2 / (ratio**2).sum())}


def _repeat(request: Request, m: int) -> Request:
    """Return the request m times over, cell i again at i + n, i + 2n, ..."""
    tile = {
        name: np.concatenate([getattr(request, name)] * m)
        for name in ("codes", "continuous", "continuous_known", "additive", "fallback", "small")
    }
    return replace(request, **tile)


def _density_gradient(
    model: Any, request: Request, sample: Sample, streams: Streams, opts: Mapping[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    """D <- D + scale s_t^2 grad log r(D), r from a two-layer perceptron."""
    generated, device = sample(request), model.module.device
    x, y, n_real = _real_and_generated(model, generated, request)
    network = _fit_ratio(torch.from_numpy(x), torch.from_numpy(y).float(), streams).to(device)
    width = generated.shape[1]
    conditions = torch.from_numpy(x[n_real:, width:]).to(device)

    def steer(denoiser: Callable[..., Tensor], rows: slice) -> Callable[..., Tensor]:
        def guided(noisy: Tensor, sigma: Tensor) -> Tensor:
            d = denoiser(noisy, sigma)
            with torch.enable_grad():
                point = d.detach().requires_grad_(True)
                log_ratio = network(torch.cat([point, conditions[rows]], dim=1)).sum()
                (slope,) = torch.autograd.grad(log_ratio, point)
            noise_share = sigma.square() / (1 + sigma.square())
            return d + float(opts["scale"]) * noise_share * slope

        return guided

    return sample(request, steer=steer), {}


def _fit_ratio(x: Tensor, y: Tensor, streams: Streams) -> nn.Module:
    """Logistic regression on two hidden layers, classes balanced; its logit is log r."""
    with isolated(streams.integer("sample", -13)), torch.enable_grad():
        network = nn.Sequential(nn.Linear(x.shape[1], 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
        loss_of = nn.BCEWithLogitsLoss(pos_weight=(1 - y).sum() / y.sum())
        for _ in range(400):
            batch = torch.randint(len(x), (256,))
            optimizer.zero_grad()
            loss_of(network(x[batch])[:, 0], y[batch]).backward()
            optimizer.step()
    return network.eval().requires_grad_(False)


def _classifier(
    model: Any, request: Request, sample: Sample, streams: Streams, opts: Mapping[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    """D <- D + scale sigma^2 grad_y log p(c | y, sigma), by the noise-aware classifier of stage "guide"."""
    module = model.module
    if module.guide is None:
        raise SetupError(
            "post_guidance='classifier' needs the noise-aware classifier, which was not trained: "
            "SCLD(adata, guidance_classifier=True), then train() again."
        )
    codes = torch.from_numpy(request.codes).to(module.device)
    n_cats = torch.tensor(module.n_cats, device=module.device)

    def steer(denoiser: Callable[..., Tensor], rows: slice) -> Callable[..., Tensor]:
        wanted = codes[rows]
        known = wanted < n_cats

        def guided(noisy: Tensor, sigma: Tensor) -> Tensor:
            d = denoiser(noisy, sigma)
            level = torch.as_tensor(sigma).reshape(-1)
            with torch.enable_grad():
                point = noisy.detach().requires_grad_(True)
                total = point.sum() * 0.0
                for k, logits in enumerate(module.classify_noisy(point, level)):
                    index = wanted[:, k].clamp(max=logits.shape[1] - 1)[:, None]
                    total = total + (logits.log_softmax(1).gather(1, index)[:, 0] * known[:, k]).sum()
                (slope,) = torch.autograd.grad(total, point)
            return d + float(opts["scale"]) * level[:, None].square() * slope

        return guided

    return sample(request, steer=steer), {}


def _cycle(
    model: Any, request: Request, sample: Sample, streams: Streams, opts: Mapping[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    """W <- (1 - g) w + g standardise(mu(encode(sampled counts))); the log total stays."""
    weight = float(opts["weight"])
    if not 0 <= weight <= 0.5:
        raise SetupError(f"post_guidance_kwargs weight={weight}; expected a number from 0 to 0.5.")
    w = sample(request)
    child = Streams(streams.integer("sample", -14))
    cells = model._decode_states(w, request, child, library_size=None, decode="exact_total", output="counts")
    encoded = model.encode_counts(cells["x"], request, cells["codes"])
    d = model.module.n_latent
    z = (torch.from_numpy(encoded) - model.module.latent_centre.cpu()) / model.module.latent_scale.cpu()
    w[:, :d] = (1 - weight) * w[:, :d] + weight * z
    return w, {}


def _reject(
    model: Any, request: Request, sample: Sample, streams: Streams, opts: Mapping[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    """Draw again until a classifier on training latents agrees with every condition, at most ``max_tries`` times."""
    from sklearn.linear_model import LogisticRegression

    real, n_cats, n = model.training_states(), model.covariates.n_cats, request.n
    classifiers = {}
    for k, n_cat in enumerate(n_cats):
        known = (real["codes"][:, k] < n_cat).numpy()
        if len(np.unique(real["codes"][known, k])) > 1:
            fit = LogisticRegression(max_iter=500).fit(real["w"][known].numpy(), real["codes"][known, k].numpy())
            classifiers[k] = fit

    def disagrees(w: Tensor, codes: np.ndarray) -> np.ndarray:
        wrong = np.zeros(len(w), dtype=bool)
        for k, classifier in classifiers.items():
            wrong |= (classifier.predict(w.numpy()) != codes[:, k]) & (codes[:, k] < n_cats[k])
        return wrong

    w = sample(request)
    open_rows = np.flatnonzero(disagrees(w, request.codes))
    n_drawn, n_kept = n, n - len(open_rows)
    for attempt in range(1, int(opts["max_tries"])):
        if not len(open_rows):
            break
        part = _rows(request, open_rows)
        again = sample(part, streams=Streams(streams.integer("sample", -15, attempt)))
        w[torch.from_numpy(open_rows)] = again
        still = disagrees(again, part.codes)
        n_drawn, n_kept = n_drawn + len(open_rows), n_kept + int((~still).sum())
        open_rows = open_rows[still]
    rejected = np.zeros(n, dtype=bool)
    rejected[open_rows] = True
    return w, {"acceptance": n_kept / n_drawn, "rejected": rejected, "n_rejected": int(rejected.sum())}


def _rows(request: Request, rows: np.ndarray) -> Request:
    cut = {
        name: getattr(request, name)[rows]
        for name in ("codes", "continuous", "continuous_known", "additive", "fallback", "small")
    }
    return replace(request, **cut)
