"""LangCell as a source of scores: cells against texts, from files that the user has (arXiv 2405.06708).

Similarity is the cosine of a cell and a text in a common space; matching lets the text read the cell's tokens. Their
blend is a row of probabilities for `GRIT` to refine. No network is touched, and no agreement with numbers that the
published weights give is claimed: without the weights, only shapes, masks, determinism and tokens are tested.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from anndata import AnnData
from scvi.model._utils import parse_device_args
from torch import Tensor
from torch.nn import functional as F

from cellsmith._errors import DataWarning, SetupError, nearest
from cellsmith.model.grit.langcell_assembly import read_networks, read_vocabulary, text_tokens
from cellsmith.model.grit.langcell_blend import LangCellSettings, blend
from cellsmith.model.grit.langcell_files import class_texts, require_extra
from cellsmith.model.grit.langcell_networks import Networks, pad
from cellsmith.model.grit.langcell_tokens import GeneVocabulary, TokenizedCells, tokenize
from cellsmith.model.grit.sources import Scores

__all__ = ["LangCell"]

logger = logging.getLogger("cellsmith")

PRECISIONS = {"32": torch.float32, "64": torch.float64, "bf16": torch.bfloat16, "16": torch.float16}
GENE_COLUMNS = ("ensembl_id", "gene_ids", "feature_id")


class LangCell:
    """Scores of cells against texts, by a LangCell model in a local folder; make one with `from_local`.

    Calling it with an AnnData returns `Scores`, so that it can be handed to ``cellsmith.tl.grit`` as it is.

    Parameters
    ----------
    networks
        Encoders, projections and matching head.
    vocabulary
        Genes and their tokens.
    texts
        Class -> token lists of its texts.
    settings
        Everything else.
    max_length
        Longest token list that the cell encoder takes.
    text_pad
        Token that fills short texts.
    """

    def __init__(
        self,
        networks: Networks,
        *,
        vocabulary: GeneVocabulary,
        texts: Mapping[str, Sequence[Sequence[int]]],
        settings: LangCellSettings | None = None,
        max_length: int = 2_048,
        text_pad: int = 0,
    ) -> None:
        self.networks, self.vocabulary, self.max_length = networks, vocabulary, max_length
        self.settings = LangCellSettings() if settings is None else settings
        self.classes = tuple(texts)
        device = networks.device
        self._ids, self._mask = (
            t.to(device) for t in pad([row for rows in texts.values() for row in rows], fill=text_pad)
        )
        most = max(len(rows) for rows in texts.values())
        self._slots = torch.full((len(texts), most), -1, dtype=torch.long, device=device)
        position = 0
        for i, rows in enumerate(texts.values()):
            self._slots[i, : len(rows)] = torch.arange(position, position + len(rows))
            position += len(rows)
        self._texts = self._class_vectors()

    def __repr__(self) -> str:
        return f"LangCell({len(self.classes)} classes, {len(self.vocabulary.medians)} genes, {self.settings})"

    @classmethod
    def from_local(
        cls,
        path: str | Path,
        *,
        text: Any = None,
        classes: Sequence[str] | None = None,
        accelerator: str = "auto",
        precision: str = "32",
        similarity_share: float = 0.5,
        match: str = "single",
        match_top: int | None = 5,
        match_margin: float = 0.2,
        similarity_temperature: float = 0.05,
        batch_size: int = 32,
        layer: str | None = None,
        gene_key: str | None = None,
        allow_pickle: bool = False,
    ) -> LangCell:
        """Open a model that lies in a folder.

        Parameters
        ----------
        path
            Folder with ``cell_bert/`` and ``text_bert/`` (each ``config.json`` and weights), ``cell_proj``,
            ``text_proj`` and ``ctm_head`` (weights), ``vocab.txt`` or ``tokenizer.json`` (in ``tokenizer/`` or
            ``text_bert/``), ``token_dictionary`` and ``gene_median_dictionary`` (JSON or parquet), and, optional,
            ``gene_name_id_dict`` (symbol -> Ensembl id) and ``type2text.json``. Weights are ``.safetensors``, or
            ``.bin`` of tensors only.
        text
            What describes the classes: a JSON file or mapping, class -> text or list of texts, or an ontology from
            ``cellsmith.model.grit.sources.read_ontology`` (name and definition are joined). None reads
            ``type2text.json``. A class with several texts has the mean of their cosines and of their p(match).
        classes
            Classes to score, in their order; None takes all of ``text``. An ontology needs them.
        accelerator
            "auto", "cpu", "gpu", ...; as in scvi-tools.
        precision
            "32", "64", "bf16" or "16": number type of the networks. Scores are computed in float32.
        similarity_share
            Share of the similarity in the blend, from 0 to 1. At 1 nothing is matched, and no head is needed.
        match
            "single" or "double"; see `blend`.
        match_top, match_margin
            Only cells whose two best classes are closer than ``match_margin`` are matched, against their
            ``match_top`` best classes. ``match_top=None, match_margin=math.inf`` matches everything, as published.
        similarity_temperature
            Unit of cosines; 0.05 is what the model was trained with.
        batch_size
            Cells encoded together, and the most texts matched together.
        layer
            Layer of the raw counts; None is ``.X``.
        gene_key
            Column of ``.var`` with Ensembl ids (or symbols); None takes ``ensembl_id``, ``gene_ids`` or
            ``feature_id``, else the names of the genes.
        allow_pickle
            Open pickled dictionaries, by an unpickler that knows numbers, strings and containers only.

        Returns
        -------
        A callable: AnnData -> `Scores`.

        Raises
        ------
        MissingExtraError
            If ``cellsmith[clip]`` is not installed.
        SetupError
            If a file is missing, is a pickle, or does not fit the others, or an argument is out of its range.
        """
        require_extra()
        settings = LangCellSettings(
            similarity_share=similarity_share,
            match=match,
            match_top=match_top,
            match_margin=match_margin,
            similarity_temperature=similarity_temperature,
            batch_size=batch_size,
            layer=layer,
            gene_key=gene_key,
        )
        if precision not in PRECISIONS:
            raise SetupError(f"precision={precision!r}. {nearest(precision, PRECISIONS)}")
        folder = Path(path)
        if not folder.is_dir():
            raise SetupError(f"{folder} is not a folder; expected the folder of a LangCell model on this machine.")
        device = parse_device_args(accelerator=accelerator, devices="auto", return_device="torch")[2]
        vocabulary = read_vocabulary(folder, allow_pickle=allow_pickle)
        texts = class_texts(folder / "type2text.json" if text is None else text, classes)
        networks, sizes = read_networks(folder, matching=similarity_share < 1.0)
        if vocabulary.cls >= sizes["cell_vocabulary"]:
            raise SetupError(
                f"The token dictionary goes up to <cls> = {vocabulary.cls}, and the cell encoder knows "
                f"{sizes['cell_vocabulary']} tokens; expected files of one model."
            )
        tokens, text_pad = text_tokens(folder, texts, n_tokens=sizes["text_vocabulary"], most=sizes["text_length"])
        return cls(
            networks.to(device, PRECISIONS[precision]),
            vocabulary=vocabulary,
            texts=tokens,
            settings=settings,
            max_length=min(2_048, sizes["cell_length"]),
            text_pad=text_pad,
        )

    def tokenize(self, adata: AnnData) -> TokenizedCells:
        """Return the tokens of every cell; where ``.obs["filter_pass"]`` exists, cells that are not 1 there have none.

        Parameters
        ----------
        adata
            Counts in ``.X`` or the layer; in memory, backed or dask.

        Raises
        ------
        SetupError
            If the layer or column is missing, no gene is known, no cell passes, or a value is no count.
        """
        layer, gene_key = self.settings.layer, self.settings.gene_key
        if layer is not None and layer not in adata.layers:
            raise SetupError(f"Found no layer {layer!r}. {nearest(layer, adata.layers)}")
        if gene_key is not None and gene_key not in adata.var:
            raise SetupError(f"Found no column {gene_key!r} in .var. {nearest(gene_key, adata.var)}")
        column = gene_key or next((name for name in GENE_COLUMNS if name in adata.var), None)
        genes = adata.var_names if column is None else adata.var[column]
        keep = None
        if "filter_pass" in adata.obs:
            keep = np.asarray(adata.obs["filter_pass"].to_numpy() == 1, dtype=bool)
            if not keep.any():
                raise SetupError("No cell has 1 in .obs['filter_pass']; expected some, or no such column.")
        return tokenize(
            adata.X if layer is None else adata.layers[layer],
            [str(gene) for gene in genes.to_numpy()],
            self.vocabulary,
            keep=keep,
            max_length=self.max_length,
            name=lambda row: str(adata.obs_names[row]),
        )

    def __call__(self, adata: AnnData) -> Scores:
        """Score cells.

        Parameters
        ----------
        adata
            Counts of the cells; it is not changed.

        Returns
        -------
        ``(n, C)`` probabilities, float32. A cell that ``.obs["filter_pass"]`` leaves out, or that expresses no known
        gene, has a row of NaN, which `GRIT` fills from its neighbours.

        Raises
        ------
        SetupError
            As `tokenize`.
        """
        cells = self.tokenize(adata)
        if cells.fractional:
            warnings.warn(
                "Found fractional values; expected raw counts, because genes are ranked by them. Name the layer that "
                "holds the counts with layer=.",
                DataWarning,
                stacklevel=2,
            )
        if empty := int((cells.lengths == 1).sum()):
            warnings.warn(
                f"{empty} of {len(cells)} cells express no gene that the model knows; their scores are NaN.",
                DataWarning,
                stacklevel=2,
            )
        values = np.full((len(cells), len(self.classes)), np.nan, dtype=np.float32)
        matched = 0
        with torch.inference_mode():
            for rows in self._batches(cells.lengths):
                found, n_matched = self._score([cells[i] for i in rows])
                values[rows] = found.cpu().numpy()
                matched += n_matched
        logger.info("LangCell: %d of %d cells were close calls and were matched.", matched, len(cells))
        s = self.settings
        how = f"similarity_share={s.similarity_share}, match={s.match}, top={s.match_top}, margin={s.match_margin}"
        return Scores(values, self.classes, "prob", np.asarray(adata.obs_names, dtype=object), f"langcell ({how})")

    def _batches(self, lengths: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
        """Yield cells of similar length together, the longest first: what does not fit in memory fails at once."""
        rows = np.flatnonzero(lengths > 1)
        rows = rows[np.argsort(-lengths[rows], kind="stable")]
        for start in range(0, rows.size, self.settings.batch_size):
            yield rows[start : start + self.settings.batch_size]

    def _class_vectors(self) -> Tensor:
        """Return ``(C, d)`` means of the unit vectors of a class's texts, whose products are mean cosines."""
        size, n = self.settings.batch_size, self._ids.shape[0]
        with torch.inference_mode():
            parts = [self.networks.texts(self._ids[i : i + size], self._mask[i : i + size]) for i in range(0, n, size)]
        owner, here = torch.cat(parts)[self._slots.clamp(min=0)], (self._slots >= 0)[..., None]
        return (owner * here).sum(dim=1) / here.sum(dim=1)

    def _score(self, lists: Sequence[npt.NDArray[np.int32]]) -> tuple[Tensor, int]:
        """Return the scores ``(B, C)`` of one batch, and how many of its cells were matched."""
        s = self.settings
        ids, mask = (t.to(self.networks.device) for t in pad(lists, fill=self.vocabulary.pad))
        states, cell = self.networks.cells(ids, mask)
        similarity = F.softmax(cell @ self._texts.T / s.similarity_temperature, dim=-1)
        n_classes = len(self.classes)
        if s.similarity_share == 1.0 or n_classes == 1:
            return similarity, 0
        best, order = similarity.topk(min(max(2, s.match_top or n_classes), n_classes), dim=-1)
        close = torch.nonzero(best[:, 0] - best[:, 1] < s.match_margin).ravel()
        if close.numel():
            log_match = self._match(states[close], mask[close], order[close])
            mixed = blend(
                similarity[close], order[close], log_match, similarity_share=s.similarity_share, match=s.match
            )
            similarity = similarity.index_copy(0, close, mixed)
        return similarity, int(close.numel())

    def _match(self, states: Tensor, mask: Tensor, classes: Tensor) -> Tensor:
        """Return log p(match) ``(B, k)`` of cells and some classes, the mean over the texts of a class."""
        slots = self._slots[classes].flatten(1)
        size = max(1, self.settings.batch_size // slots.shape[1])
        parts = [
            self._match_few(states[i : i + size], mask[i : i + size], slots[i : i + size].clamp(min=0))
            for i in range(0, slots.shape[0], size)
        ]
        there = (slots >= 0).reshape(*classes.shape, -1)
        found = torch.cat(parts).reshape(there.shape).masked_fill(~there, -math.inf)
        return found.logsumexp(dim=-1) - there.sum(dim=-1).log()

    def _match_few(self, states: Tensor, mask: Tensor, which: Tensor) -> Tensor:
        """Return log p(match) ``(B, S)`` of cells and texts; keys and values are projected once for all texts."""
        longest = int(mask.sum(dim=1).max())
        known, mask = self.networks.text.project(states[:, :longest]), mask[:, :longest]
        step = max(1, self.settings.batch_size // len(which))
        parts = []
        for some in which.split(step, dim=1):
            words = int(self._mask[some].sum(dim=-1).max())
            ids, seen = self._ids[some][..., :words], self._mask[some][..., :words]
            parts.append(self.networks.match(known, mask, ids=ids, mask=seen))
        return torch.cat(parts, dim=1)
