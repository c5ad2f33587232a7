"""LangCell without its weights: tokens by hand, a tiny random model, no network, nothing that runs from a file."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import shlex
import socket
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse

from cellsmith._errors import DataWarning, MissingExtraError, SetupError
from cellsmith.math.ontology import Ontology
from cellsmith.model.grit.langcell import LangCell
from cellsmith.model.grit.langcell_blend import blend
from cellsmith.model.grit.langcell_files import (
    class_texts,
    convert_pickle,
    read_dictionary,
    read_weights,
    require_extra,
)
from cellsmith.model.grit.langcell_networks import TextEncoder
from cellsmith.model.grit.langcell_tokens import GeneVocabulary, tokenize

try:
    require_extra()
    ABSENT = ""
except MissingExtraError as error:
    ABSENT = str(error)
needs_clip = pytest.mark.skipif(bool(ABSENT), reason=ABSENT or "cellsmith[clip] is installed")

ROOT = Path(__file__).resolve().parents[3]
N_GENES = 40
GENES = [f"ENSG{i:011d}" for i in range(N_GENES)]
WORDS = ["a", "b", "t", "nk", "cell", "cells", "that", "the", "of", "kill", "make", "antibodies", "helper"]
WORDS += ["cytotoxic", "naive", "memory", "blood", "is"]
TEXTS = {
    "B": "cells that make antibodies",
    "T": "helper t cell",
    "NK": "nk cells kill",
    "CTL": "cytotoxic t cell that kill the cells of blood",
    "naive": ["naive t cell", "naive b cell is a cell"],
    "memory": "memory cell",
    "other": "a cell of the blood",
}
CELL = {
    "vocab_size": N_GENES + 3,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "hidden_act": "relu",
    "max_position_embeddings": 64,
}
TEXT = {
    **CELL,
    "vocab_size": len(WORDS) + 7,
    "hidden_size": 24,
    "hidden_act": "gelu",
    "max_position_embeddings": 32,
    "encoder_width": 32,
}


def vocabulary(n: int = N_GENES, *, symbols: dict[str, str] | None = None) -> GeneVocabulary:
    genes = [f"ENSG{i:011d}" for i in range(n)]
    tokens = {"<pad>": 0, "<mask>": 1, **{g: i + 2 for i, g in enumerate(genes)}}
    return GeneVocabulary(tokens, {g: 1.0 + i % 7 for i, g in enumerate(genes)}, symbols or {})


def random_weights(network: torch.nn.Module, seed: int, *, scale: float = 0.3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator) * scale + ("LayerNorm.weight" in name)
        for name, value in network.state_dict().items()
        if value.is_floating_point()
    }


def write_model(folder: Path) -> Path:
    """Save a random model with two layers in each encoder, as a user would have it."""
    from safetensors.torch import save_file
    from transformers import BertConfig, BertModel

    cell = BertModel(BertConfig(**CELL), add_pooling_layer=False)
    parts = {"cell_bert": (CELL, cell), "text_bert": (TEXT, TextEncoder(TEXT))}
    for seed, (name, (config, network)) in enumerate(parts.items()):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps({"model_type": "bert", **config}))
        save_file(random_weights(network, seed), folder / name / "model.safetensors")
    for seed, (name, n_in, n_out) in enumerate((("cell_proj", 32, 16), ("text_proj", 24, 16), ("ctm_head", 24, 2))):
        save_file(random_weights(torch.nn.Linear(n_in, n_out), 10 + seed), folder / f"{name}.safetensors")
    (folder / "tokenizer").mkdir()
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "tokenizer" / "vocab.txt").write_text("\n".join(vocab) + "\n")
    known = vocabulary()
    (folder / "token_dictionary.json").write_text(json.dumps(known.tokens))
    (folder / "gene_median_dictionary.json").write_text(json.dumps(known.medians))
    (folder / "type2text.json").write_text(json.dumps(TEXTS))
    return folder


def cells(n: int = 24, *, seed: int = 0) -> AnnData:
    """Counts of very different depth, with two genes that the model does not know."""
    generator = np.random.default_rng(seed)
    depth = np.linspace(0.05, 1.5, n)[generator.permutation(n)][:, None]
    x = generator.poisson(depth * generator.gamma(1.0, size=(n, N_GENES + 2)))
    x[:, 0] += 1
    names = [*GENES, "ENSG99999999998", "ENSG99999999999"]
    out = AnnData(sparse.csr_matrix(x.astype(np.float32)), var=pd.DataFrame(index=names))
    out.obs_names = [f"cell{i}" for i in range(n)]
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if ABSENT:
        pytest.skip(ABSENT)
    return write_model(tmp_path_factory.mktemp("langcell") / "model")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Refuse every connection, and note who tried."""
    tried: list[str] = []

    def refuse(*args: Any, **kwargs: Any) -> None:
        tried.append(repr(args))
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    return tried


def local(folder: Path, **kwargs: Any) -> LangCell:
    return LangCell.from_local(folder, accelerator="cpu", **kwargs)


# --- tokens


def test_tokens_computed_by_hand() -> None:
    # medians 1, 2, 3, 4 of the genes with tokens 2, 3, 4, 5; <cls> is the first free token, 6
    known = vocabulary(4)
    assert (known.pad, known.cls) == (0, 6)
    counts = np.array([[2, 8, 9, 4, 77], [0, 2, 0, 4, 0], [0, 0, 0, 0, 5], [3, 0, 0, 0, 0]])
    found = tokenize(counts, [*GENES[:4], "unknown"], known)
    # first cell 2/1, 8/2, 9/3, 4/4 -> 3, 4, 2, 5; second 2/2 and 4/4, equal, by token -> 3, 5
    assert [found[i].tolist() for i in range(4)] == [[6, 3, 4, 2, 5], [6, 3, 5], [6], [6, 2]]
    assert found.lengths.tolist() == [5, 3, 1, 2]
    assert not found.fractional


def test_a_cell_with_more_genes_than_fit_equals_the_published_double_cut() -> None:
    n = 2_100
    known = vocabulary(n)
    counts = np.random.default_rng(0).permutation(np.arange(1, n + 1))[None, :]
    genes = [f"ENSG{i:011d}" for i in range(n)]
    found = tokenize(counts, genes, known)[0]
    median = np.array([known.medians[g] for g in genes])
    order = np.lexsort((np.arange(n), -counts[0] / median))
    published = counts[0] / counts.sum() * 10_000 / median
    assert np.all(np.diff(published[order]) < 1e-12)  # the published value, whose rounding decides between ties
    ranked = np.array([known.tokens[g] for g in genes])[order].tolist()
    assert found.tolist() == ([known.cls, *ranked[:2_048]])[:2_048]  # cut, prepend, cut again
    assert found.size == 2_048
    assert found.tolist() == [known.cls, *ranked[:2_047]]


def test_n_counts_come_before_the_selection_of_genes() -> None:
    # Whatever a gene without a median adds, it divides all others alike: the order, ties included, stays.
    counts = np.random.default_rng(1).poisson(3, (5, 11))
    more = counts.copy()
    more[:, -1] += 10_000
    names = [*GENES[:10], "unknown"]
    a, b = (tokenize(x, names, vocabulary(10)) for x in (counts, more))
    assert a.tokens.tolist() == b.tokens.tolist()


def test_gene_order_index_versions_symbols_and_repeated_genes() -> None:
    adata = cells()
    known = vocabulary(symbols={"CD3E": GENES[5]})
    reference = tokenize(adata.X, adata.var_names, known)
    shuffled = adata[:, np.random.default_rng(3).permutation(adata.n_vars)]
    assert tokenize(shuffled.X, shuffled.var_names, known).tokens.tolist() == reference.tokens.tolist()
    renamed = ["CD3E" if g == GENES[5] else f"{g}.12" for g in adata.var_names]
    assert tokenize(adata.X, renamed, known).tokens.tolist() == reference.tokens.tolist()
    twice = sparse.hstack([adata.X[:, :5], adata.X[:, 5:] * 0.5, adata.X[:, 5:] * 0.5]).tocsr()
    names = [*adata.var_names, *adata.var_names[5:]]
    assert tokenize(twice, names, known).tokens.tolist() == reference.tokens.tolist()


class Lazy:
    """What dask gives: slices that have to be computed."""

    def __init__(self, x: Any) -> None:
        self.x, self.shape = x, x.shape

    def __getitem__(self, rows: slice) -> Lazy:
        return Lazy(self.x[rows])

    def compute(self) -> Any:
        return self.x


def test_every_kind_of_matrix_gives_the_same_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cellsmith.model.grit.langcell_tokens._ROWS", 7)
    adata = cells()
    reference = tokenize(adata.X, adata.var_names, vocabulary()).tokens.tolist()
    x = adata.X
    for other in (x.toarray(), x.tocsc(), sparse.csr_array(x), x.astype(np.int64), x.toarray().astype("u2"), Lazy(x)):
        assert tokenize(other, adata.var_names, vocabulary()).tokens.tolist() == reference
    for name, matrix in (("csr", x), ("csc", x.tocsc()), ("dense", x.toarray())):
        copy = adata.copy()
        copy.X = matrix
        copy.write_h5ad(tmp_path / f"{name}.h5ad")
        backed = ad.read_h5ad(tmp_path / f"{name}.h5ad", backed="r")
        assert tokenize(backed.X, backed.var_names, vocabulary()).tokens.tolist() == reference
        backed.file.close()


def test_dask_gives_the_same_tokens() -> None:
    array = pytest.importorskip("dask.array")
    adata = cells()
    lazy = array.from_array(adata.X.toarray(), chunks=(5, 10))
    found = tokenize(lazy, adata.var_names, vocabulary()).tokens
    assert found.tolist() == tokenize(adata.X, adata.var_names, vocabulary()).tokens.tolist()


def test_fifty_thousand_cells_are_not_densified() -> None:
    n, n_genes = 50_000, 20_000
    generator = np.random.default_rng(0)
    indptr = np.arange(0, n * 60 + 1, 60)
    indices = generator.integers(0, n_genes, n * 60, dtype=np.int32)
    x = sparse.csr_matrix((np.ones(n * 60, dtype=np.float32), indices, indptr.astype(np.int32)), shape=(n, n_genes))
    size = x.data.nbytes + x.indices.nbytes + x.indptr.nbytes
    known, names = vocabulary(n_genes), [f"ENSG{i:011d}" for i in range(n_genes)]
    tracemalloc.start()
    try:
        found = tokenize(x, names, known)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == n
    assert peak + size < 2 * size + 8e6  # 8 MB hold the names of genes; densified it would be 4 GB


@pytest.mark.parametrize(("value", "shown"), [(-1.0, "-1.0"), (math.nan, "nan"), (math.inf, "inf")])
def test_values_that_are_no_counts_name_cell_and_gene(value: float, shown: str) -> None:
    x = np.ones((3, 4))
    x[1, 2] = value
    with pytest.raises(SetupError, match=rf"Cell 'c1' has {shown} of gene '{GENES[2]}'; expected counts.*layer="):
        tokenize(x, GENES[:4], vocabulary(), name=lambda i: f"c{i}")


def test_unknown_genes_and_faulty_dictionaries_are_refused() -> None:
    with pytest.raises(SetupError, match=r"None of the 2 genes has a median.*'CD3E'.*gene_key="):
        tokenize(np.ones((1, 2)), ["CD3E", "CD8A"], vocabulary())
    with pytest.raises(SetupError, match="no '<pad>'"):
        GeneVocabulary({"g": 1}, {"g": 1.0}, {})
    with pytest.raises(SetupError, match="repeated token"):
        GeneVocabulary({"<pad>": 0, "g": 0}, {"g": 1.0}, {})
    with pytest.raises(SetupError, match="a median and no token"):
        GeneVocabulary({"<pad>": 0}, {"g": 1.0}, {})
    with pytest.raises(SetupError, match="median of g is 0"):
        GeneVocabulary({"<pad>": 0, "g": 1}, {"g": 0.0}, {})


# --- blend


def test_single_divides_once_and_double_stays_in_its_exact_interval() -> None:
    n_classes, e = 8, math.e
    low, high = 1 / (1 + (n_classes - 1) * e), e / (e + n_classes - 1)
    similarity = torch.full((2, n_classes), 1 / n_classes, dtype=torch.float64)
    classes = torch.arange(n_classes).expand(2, -1)
    p = torch.full((2, n_classes), 1e-9, dtype=torch.float64)
    p[0, 3] = 1.0  # one match against seven: the top of the interval
    p[1] = 1.0
    p[1, 0] = 0.0  # seven matches against one: the bottom
    double = blend(similarity, classes, p.log(), similarity_share=0.0, match="double")
    assert double[0, 3].item() == pytest.approx(high, rel=1e-7)
    assert double[1, 0].item() == pytest.approx(low, rel=1e-7)
    assert (round(low, 3), round(high, 3)) == (0.050, 0.280)
    random = torch.rand((500, n_classes), generator=torch.Generator().manual_seed(0), dtype=torch.float64).log()
    found = blend(
        similarity[:1].expand(500, -1), classes[:1].expand(500, -1), random, similarity_share=0, match="double"
    )
    assert low <= found.min() < found.max() <= high
    single = blend(similarity, classes, p.log(), similarity_share=0.0, match="single")
    torch.testing.assert_close(single, p / p.sum(1, keepdim=True))


def test_unmatched_classes_keep_their_similarity_and_rows_sum_to_one() -> None:
    generator = torch.Generator().manual_seed(1)
    similarity = torch.softmax(torch.randn(6, 9, generator=generator), dim=1)
    top = similarity.topk(5).indices
    log_match = torch.randn(6, 5, generator=generator) * 40 - 200  # p(match) itself would underflow
    out = blend(similarity, top, log_match, similarity_share=0.3)
    torch.testing.assert_close(out.sum(1), torch.ones(6))
    rest = torch.ones_like(similarity, dtype=torch.bool).scatter(1, top, False)
    torch.testing.assert_close(out[rest], similarity[rest])
    torch.testing.assert_close(blend(similarity, top, log_match, similarity_share=1.0), similarity)


# --- networks


def ids_of(n: int, length: int, high: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, high, (n, length), generator=generator)
    mask = torch.arange(length)[None, :] < torch.randint(2, length + 1, (n, 1), generator=generator)
    return torch.where(mask, ids, 0), mask


@needs_clip
def test_text_encoder_equals_the_bert_of_transformers_with_and_without_cells() -> None:
    from transformers import BertConfig, BertModel

    config = {**TEXT, "hidden_size": 32}  # transformers knows one width only
    own = TextEncoder(config)
    own.load_state_dict(random_weights(own, 3))
    settings = BertConfig(**config, is_decoder=True, add_cross_attention=True)
    other = BertModel(settings, add_pooling_layer=False).eval()
    missing, unexpected = other.load_state_dict(own.state_dict(), strict=False)
    assert not unexpected
    assert all("token_type" in name or "position_ids" in name for name in missing)
    torch.nn.init.zeros_(other.embeddings.token_type_embeddings.weight)
    ids, mask = ids_of(3, 6, len(WORDS), seed=4)
    cell, cell_mask = torch.randn(3, 9, 32, generator=torch.Generator().manual_seed(5)), ids_of(3, 9, 9, seed=6)[1]
    two_way = mask[:, None, None, :].expand(3, 1, 6, 6)  # a mask of this shape replaces the causal one
    for given in ({}, {"encoder_hidden_states": cell, "encoder_attention_mask": cell_mask.long()}):
        with torch.inference_mode():
            kwargs = {"known": own.project(cell), "cell_mask": cell_mask} if given else {}
            expected = other(input_ids=ids, attention_mask=two_way, use_cache=False, **given).last_hidden_state
            found = own(ids, mask, **kwargs)
        torch.testing.assert_close(found[mask], expected[mask], atol=1e-5, rtol=1e-5)


@needs_clip
@pytest.mark.parametrize(("batch_size", "calls"), [(128, 1), (30, 3), (3, 5)])
def test_reused_keys_equal_the_naive_computation_and_are_projected_once(
    folder: Path, batch_size: int, calls: int
) -> None:
    model = local(folder, match_top=None, match_margin=math.inf, batch_size=batch_size)
    networks = model.networks
    lists = [model.tokenize(cells())[i] for i in range(5)]
    projected = []
    for layer in networks.text.encoder["layer"]:
        layer.crossattention["self"].key.register_forward_hook(lambda _m, x, _y: projected.append(len(x[0])))
    with torch.inference_mode():
        ids = torch.nn.utils.rnn.pad_sequence([torch.as_tensor(r).long() for r in lists], batch_first=True)
        mask = ids > 0
        states, _ = networks.cells(ids, mask)
        every = torch.arange(len(model.classes)).expand(5, -1)
        reused = model._match(states, mask, every)
        # every cell once a layer, although 14 texts read it, and although they do not all fit in one batch
        assert (len(projected), sum(projected)) == (2 * calls, 2 * 5)
        naive = torch.zeros(5, len(TEXTS))
        for i, row in enumerate(lists):  # one cell, one text, no padding, keys and values anew
            own_ids = torch.as_tensor(row).long()[None]
            alone, _ = networks.cells(own_ids, torch.ones_like(own_ids, dtype=torch.bool))
            for c, slots in enumerate(model._slots):
                p = []
                for slot in slots[slots >= 0]:
                    text = model._ids[slot][model._mask[slot]][None]
                    known = networks.text.project(alone)
                    h = networks.text(text, text > -1, known=known, cell_mask=own_ids > 0)[:, 0]
                    p.append(torch.softmax(networks.head(h), dim=-1)[0, 1])
                naive[i, c] = torch.stack(p).mean()
    assert (reused.exp() - naive).abs().max() < 1e-5
    assert naive.std() > 0.01  # the comparison can fail


# --- the whole


@needs_clip
def test_scores_are_finite_normalised_deterministic_and_need_no_network(folder: Path, offline: list[str]) -> None:
    adata = cells()
    before = (adata.X.copy(), list(adata.obs), list(adata.var), list(adata.uns))
    scores = local(folder)(adata)
    assert scores.values.shape == (24, len(TEXTS))
    assert scores.values.dtype == np.float32
    assert (scores.classes, scores.space) == (tuple(TEXTS), "prob")
    assert scores.obs_names.tolist() == adata.obs_names.tolist()
    assert "similarity_share=0.5" in scores.source
    assert np.isfinite(scores.values).all()
    np.testing.assert_allclose(scores.values.sum(1), 1.0, atol=1e-6)
    assert np.array_equal(scores.values, local(folder)(adata).values)
    assert np.ptp(scores.values, axis=0).max() > 0.05  # cells differ
    assert offline == []
    assert (before[0] != adata.X).nnz == 0
    assert (list(adata.obs), list(adata.var), list(adata.uns)) == before[1:]


@needs_clip
def test_scores_do_not_depend_on_batches_order_or_kind_of_matrix(folder: Path, tmp_path: Path) -> None:
    adata = cells()
    reference = local(folder)(adata).values
    for size in (1, 5):
        np.testing.assert_allclose(local(folder, batch_size=size)(adata).values, reference, atol=1e-5)
    order = np.random.default_rng(0).permutation(adata.n_obs)
    np.testing.assert_allclose(local(folder)(adata[order].copy()).values, reference[order], atol=1e-5)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    assert np.array_equal(local(folder)(backed).values, reference)
    backed.file.close()


@needs_clip
def test_batches_hold_cells_of_similar_length(folder: Path) -> None:
    model, adata = local(folder, batch_size=4), cells()
    widths: list[tuple[int, ...]] = []
    model.networks.cell.register_forward_pre_hook(
        lambda _m, _a, given: widths.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    model(adata)
    lengths = np.sort(model.tokenize(adata).lengths)[::-1]
    assert widths == [(4, int(lengths[i])) for i in range(0, 24, 4)]


@needs_clip
def test_only_close_calls_are_matched_against_their_best_classes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adata = cells()
    similarity = local(folder, similarity_share=1.0)(adata).values
    ranked = np.sort(similarity, axis=1)[:, ::-1]
    margin = float(np.median(ranked[:, 0] - ranked[:, 1]))  # half of the cells are close calls
    close = ranked[:, 0] - ranked[:, 1] < margin
    model = local(folder, similarity_share=0.0, match_margin=margin, match_top=3)
    asked: list[tuple[int, ...]] = []
    original = LangCell._match

    def watch(self: LangCell, states: torch.Tensor, mask: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        asked.append(tuple(classes.shape))
        return original(self, states, mask, classes)

    monkeypatch.setattr(LangCell, "_match", watch)
    values = model(adata).values
    assert sum(n for n, _ in asked) == close.sum()
    assert {k for _, k in asked} == {3}
    assert 0 < close.sum() < 24
    np.testing.assert_array_equal(values[~close], similarity[~close])
    changed = np.abs(values - similarity) > 1e-7
    assert changed[close].any(axis=1).all()
    assert changed.sum(axis=1).max() <= 3
    np.testing.assert_allclose(values.sum(1), 1.0, atol=1e-6)
    asked.clear()
    np.testing.assert_array_equal(local(folder, match_margin=0.0)(adata).values, similarity)
    assert asked == []


@needs_clip
def test_matching_everything_doubly_is_the_published_formula(folder: Path) -> None:
    everything = {"match_top": None, "match_margin": math.inf, "match": "double"}
    adata = cells()
    values = {share: local(folder, similarity_share=share, **everything)(adata).values for share in (0.0, 0.5, 1.0)}
    np.testing.assert_allclose(values[0.5], (values[0.0] + values[1.0]) / 2, atol=1e-6)
    n, e = len(TEXTS), math.e
    assert 1 / (1 + (n - 1) * e) - 1e-6 <= values[0.0].min() < values[0.0].max() <= e / (e + n - 1) + 1e-6


@needs_clip
def test_similarity_is_the_softmax_of_mean_cosines(folder: Path) -> None:
    adata = cells(6)
    model = local(folder, similarity_share=1.0, similarity_temperature=0.1)
    with torch.inference_mode():
        texts = model.networks.texts(model._ids, model._mask).numpy()
        found = []
        for i in range(6):
            ids = torch.as_tensor(model.tokenize(adata)[i]).long()[None]
            found.append(model.networks.cells(ids, ids > -1)[1][0].numpy())
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1.0, atol=1e-6)
    cosine = np.array(found) @ texts.T
    owner = [name for name, given in TEXTS.items() for _ in ([given] if isinstance(given, str) else given)]
    pooled = np.array([cosine[:, [o == name for o in owner]].mean(axis=1) for name in TEXTS]).T / 0.1
    expected = np.exp(pooled) / np.exp(pooled).sum(1, keepdims=True)
    np.testing.assert_allclose(model(adata).values, expected, atol=1e-5)


@needs_clip
@pytest.mark.parametrize("dtype", [bool, int, float])
def test_filter_pass_absent_and_present(folder: Path, dtype: type) -> None:
    adata, model = cells(), local(folder)
    reference = model(adata).values
    passes = np.arange(24) % 3 != 0
    adata.obs["filter_pass"] = passes.astype(dtype)
    values = model(adata).values
    np.testing.assert_allclose(values[passes], reference[passes], atol=1e-5)
    assert np.isnan(values[~passes]).all()
    adata.obs["filter_pass"] = dtype(0)
    with pytest.raises(SetupError, match=r"No cell has 1 in .obs\['filter_pass'\]"):
        model(adata)


@needs_clip
def test_empty_cells_and_fractions_are_told(folder: Path) -> None:
    adata, model = cells(), local(folder)
    adata.X.data[adata.X.indptr[3] : adata.X.indptr[4]] = 0
    with pytest.warns(DataWarning, match="1 of 24 cells express no gene"):
        values = model(adata).values
    assert np.isnan(values[3]).all()
    assert np.isfinite(np.delete(values, 3, axis=0)).all()
    fractional = cells()
    fractional.X = fractional.X * np.float32(0.3)
    with pytest.warns(DataWarning, match="fractional values; expected raw counts"):
        model(fractional)
    with warnings.catch_warnings():
        # ours alone: pandas 3 warns of an option that anndata sets
        warnings.simplefilter("error", DataWarning)
        model(cells())


@needs_clip
def test_layers_and_gene_columns(folder: Path) -> None:
    adata = cells()
    reference = local(folder)(adata).values
    names = [f"symbol{i}" for i in range(adata.n_vars)]
    moved = AnnData(np.zeros(adata.shape), obs=adata.obs, var=pd.DataFrame({"gene_ids": adata.var_names}, index=names))
    moved.layers["counts"] = adata.X
    assert np.array_equal(local(folder, layer="counts")(moved).values, reference)
    moved.var["mine"] = moved.var.pop("gene_ids")
    assert np.array_equal(local(folder, layer="counts", gene_key="mine")(moved).values, reference)
    with pytest.raises(SetupError, match=r"no layer 'count'. Did you mean 'counts'"):
        local(folder, layer="count")(moved)
    with pytest.raises(SetupError, match=r"no column 'mines' in .var. Did you mean 'mine'"):
        local(folder, gene_key="mines")(moved)


@needs_clip
@pytest.mark.parametrize(("precision", "within"), [("64", 1e-4), ("bf16", 0.2)])
def test_precision(folder: Path, precision: str, within: float) -> None:
    adata = cells()
    everything = {"match_top": None, "match_margin": math.inf}
    reference, found = (local(folder, precision=p, **everything)(adata).values for p in ("32", precision))
    assert found.dtype == np.float32
    assert np.abs(found - reference).max() < within
    with pytest.raises(SetupError, match="precision='half'"):
        local(folder, precision="half")


# --- texts


def test_texts_of_a_json_and_of_an_ontology(tmp_path: Path) -> None:
    path = tmp_path / "texts.json"
    path.write_text(json.dumps({"B": "one", "T": ["two", "three"]}))
    assert class_texts(path, None) == {"B": ("one",), "T": ("two", "three")}
    assert list(class_texts({"B": "one", "T": "two"}, ["T", "B"])) == ["T", "B"]
    ontology = Ontology(
        "1",
        "x",
        {"CL:1": "B cell", "CL:2": "T cell", "CL:3": "NK cell"},
        {},
        synonyms={"CL:2": ("T lymphocyte",)},
        definitions={"CL:1": "A lymphocyte that makes antibodies."},
    )
    found = class_texts(ontology, ["B cell", "T lymphocyte", "CL:3"])
    assert found == {
        "B cell": ("B cell. A lymphocyte that makes antibodies.",),
        "T lymphocyte": ("T cell",),
        "CL:3": ("NK cell",),
    }
    with pytest.raises(SetupError, match="ontology of 3 terms; expected the classes"):
        class_texts(ontology, None)
    with pytest.raises(SetupError, match=r"Found no term.*'B cel'.*Did you mean 'B cell'"):
        class_texts(ontology, ["B cel"])
    with pytest.raises(SetupError, match="are the same term"):
        class_texts(ontology, ["T cell", "T lymphocyte"])


@pytest.mark.parametrize(
    ("text", "classes", "message"),
    [
        ("nowhere.json", None, "expected a JSON file"),
        ("cl.obo", None, "read_ontology"),
        ({"B": ""}, None, "empty text"),
        ({"B": []}, None, "empty text"),
        ({}, None, "empty text"),
        ({"B": "x"}, ["C"], "Found no text for \\['C'\\]"),
        ({"B": "x"}, ["B", "B"], "expected different names"),
        ({"B": "x"}, "B", "expected different names"),
        (3, None, "text is a int"),
    ],
)
def test_texts_that_do_not_do(text: Any, classes: Any, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        class_texts(text, classes)


@needs_clip
def test_texts_and_classes_reach_the_scores(folder: Path) -> None:
    adata = cells()
    chosen = local(folder, classes=["NK", "B"], similarity_share=1.0)(adata)
    assert chosen.classes == ("NK", "B")
    ontology = Ontology("1", "x", {"CL:1": "b cell", "CL:2": "t cell"}, {})
    assert local(folder, text=ontology, classes=["t cell", "b cell"])(adata).classes == ("t cell", "b cell")
    one = local(folder, classes=["NK"])(adata).values
    np.testing.assert_array_equal(one, np.ones((24, 1), dtype=np.float32))


# --- files


class Evil:
    """A pickle that runs a command when it is opened by ``pickle.load``."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def test_pickled_dictionaries_are_refused_converted_or_allowed(tmp_path: Path) -> None:
    values = {"ENSG1": np.float64(0.5), "ENSG2": 2.0, "ENSG3": np.int64(3)}
    path = tmp_path / "gene_median_dictionary.pkl"
    path.write_bytes(pickle.dumps(values))
    with pytest.raises(SetupError, match=re.escape(str(path)) + r" is a pickle.*allow_pickle=True") as refused:
        read_dictionary(tmp_path, "gene_median_dictionary")
    found = read_dictionary(tmp_path, "gene_median_dictionary", allow_pickle=True)
    assert found == {"ENSG1": 0.5, "ENSG2": 2.0, "ENSG3": 3}
    command = shlex.split(re.search(r"python (-c \".*?\")", str(refused.value))[1])
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, *command], check=True, env=environment, timeout=120)
    assert read_dictionary(tmp_path, "gene_median_dictionary") == found  # JSON goes before the pickle


@pytest.mark.parametrize(
    "payload",
    [Evil(), {"g": Evil()}, {"g": np.array([1.0])}, {"g": np.ma.masked}, {"g": np.array([object()], dtype=object)[0]}],
)
def test_pickles_that_hold_more_than_values_do_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, payload: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "token_dictionary.pkl"
    path.write_bytes(pickle.dumps(payload))
    for read in (
        lambda: read_dictionary(tmp_path, "token_dictionary", allow_pickle=True),
        lambda: convert_pickle(path),
    ):
        with pytest.raises(SetupError, match=r"was not opened: found .*; expected numbers, strings"):
            read()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_dictionaries_with_other_content_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"Found no tokens in .*; expected tokens.json or tokens.parquet"):
        read_dictionary(tmp_path, "tokens")
    assert read_dictionary(tmp_path, "tokens", required=False) == {}
    for content, message in (
        ("{", "is not JSON"),
        ("[1]", "holds a list; expected a dictionary"),
        ("{}", "holds nothing"),
        ('{"g": "x"}', "has the entry"),
        ('{"g": true}', "has the entry"),
    ):
        (tmp_path / "tokens.json").write_text(content)
        with pytest.raises(SetupError, match=message):
            read_dictionary(tmp_path, "tokens")


def test_parquet_dictionaries(tmp_path: Path) -> None:
    path = tmp_path / "tokens.parquet"
    try:
        pd.DataFrame({"gene": ["a", "b"], "token": [1, 2]}).to_parquet(path)
    except ImportError:
        path.write_bytes(b"PAR1")
        with pytest.raises(MissingExtraError, match="needs pyarrow"):
            read_dictionary(tmp_path, "tokens")
        return
    assert read_dictionary(tmp_path, "tokens") == {"a": 1, "b": 2}


def test_weights_are_tensors_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Evil()}, tmp_path / "cell_proj.bin")
    with pytest.raises(SetupError, match=r"does not load with weights_only=True.*save_file"):
        read_weights(tmp_path, ["cell_proj"])
    assert not (tmp_path / "ran").exists()
    torch.save([1, 2], tmp_path / "cell_proj.bin")
    with pytest.raises(SetupError, match="holds a list; expected a state dict"):
        read_weights(tmp_path, ["cell_proj"])
    with pytest.raises(SetupError, match=r"Found no weights in .*; expected one file of ctm_head.safetensors"):
        read_weights(tmp_path, ["ctm_head"])


@needs_clip
def test_torch_files_and_wrapped_names_give_the_same_scores(folder: Path, tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "model"
    shutil.copytree(folder, other)
    for path in other.rglob("*.safetensors"):
        name = "pytorch_model.bin" if path.stem == "model" else f"{path.stem}.bin"
        state = read_weights(path.parent, [path.stem])
        prefix = "module.bert." if path.stem == "model" else ""
        torch.save({prefix + k: v for k, v in state.items()}, path.with_name(name))
        path.unlink()
    pickled = other / "token_dictionary.pkl"
    pickled.write_bytes(pickle.dumps(json.loads((other / "token_dictionary.json").read_text())))
    (other / "token_dictionary.json").unlink()
    adata = cells()
    with pytest.raises(SetupError, match="is a pickle"):
        local(other)
    assert np.array_equal(local(other, allow_pickle=True)(adata).values, local(folder)(adata).values)


@needs_clip
def test_files_that_are_missing_or_do_not_fit(folder: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import save_file

    def broken(name: str) -> Path:
        shutil.copytree(folder, tmp_path / name)
        return tmp_path / name

    with pytest.raises(SetupError, match="is not a folder"):
        local(tmp_path / "nowhere")
    for missing, message in (
        ("cell_bert/config.json", "Found no .*config.json"),
        ("text_bert/model.safetensors", "Found no weights in .*text_bert"),
        ("ctm_head.safetensors", "expected one file of ctm_head"),
        ("tokenizer/vocab.txt", "Found no vocabulary of the texts; expected vocab.txt"),
        ("token_dictionary.json", "Found no token_dictionary"),
        ("type2text.json", "expected a JSON file"),
    ):
        place = broken(missing.replace("/", "_"))
        (place / missing).unlink()
        with pytest.raises(SetupError, match=message):
            local(place)
    assert local(tmp_path / "ctm_head.safetensors", similarity_share=1.0)(cells()).values.shape == (24, 7)
    place = broken("projection")
    save_file(random_weights(torch.nn.Linear(24, 8), 0), place / "text_proj.safetensors")
    with pytest.raises(SetupError, match="Cells are projected to 16 numbers and texts to 8"):
        local(place)
    for name, change, message in (
        ("fewer", {"num_hidden_layers": 3}, "missing .*encoder.layer.2"),
        ("wider", {"intermediate_size": 50}, "of another shape"),
        ("positions", {"position_embedding_type": "relative_key"}, "expected 'absolute'"),
    ):
        place = broken(name)
        config = place / "text_bert" / "config.json"
        config.write_text(json.dumps({**TEXT, **change}))
        with pytest.raises(SetupError, match=message):
            local(place)
    place = broken("tokens")
    tokens = {**vocabulary().tokens, "ENSG88888888888": 99}
    (place / "token_dictionary.json").write_text(json.dumps(tokens))
    with pytest.raises(SetupError, match="up to <cls> = 100, and the cell encoder knows 43"):
        local(place)
    place = broken("words")
    with (place / "tokenizer" / "vocab.txt").open("a") as file:
        file.write("".join(f"extra{i}\n" for i in range(9)) + "monocyte\n")
    with pytest.raises(SetupError, match="the text encoder knows 25"):
        local(place, text={"mono": "monocyte"})


@pytest.mark.parametrize("name", ["transformers", "tokenizers", "safetensors"])
def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf'{name}.*pip install "cellsmith\[clip\]"'):
        LangCell.from_local(tmp_path)


@needs_clip
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"match": "triple"}, "match='triple'"),
        ({"similarity_share": 1.5}, "similarity_share=1.5; expected a number from 0 to 1"),
        ({"similarity_share": math.nan}, "similarity_share=nan"),
        ({"match_top": 1}, "match_top=1; expected at least 2"),
        ({"match_margin": -0.1}, "match_margin=-0.1"),
        ({"similarity_temperature": 0.0}, "similarity_temperature=0.0"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_arguments_out_of_range(folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SetupError, match=re.escape(message)):
        local(folder, **arguments)


def test_nothing_claims_parity_with_the_published_weights() -> None:
    sources = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "src/cellsmith/model/grit").glob("*.py")]
    claim = re.compile(r"0\.9098|0\.8518|pari(?:ty|ties)|reproduces? (?:the )?(?:published|upstream)", re.IGNORECASE)
    found = [
        f"{path.name}: {sentence.strip()}"
        for path in sources
        for sentence in re.split(r"(?<=[.!?])\s", path.read_text(encoding="utf-8"))
        if "langcell" in sentence.lower() and claim.search(sentence) and not re.search(r"\bno(?:t|ne)?\b", sentence)
    ]
    assert found == []
