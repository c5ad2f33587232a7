"""DP-DCAN: the model class."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from cellsmith import _record
from cellsmith._errors import PrivacyWarning, SetupError
from cellsmith._rng import isolated
from cellsmith.data import panel as panels
from cellsmith.data.checks import check_covariates, check_names, counts_carrier, place_of, setup_arguments
from cellsmith.data.fields import cell_fields
from cellsmith.math.privacy import Ledger, Statement
from cellsmith.model._base import CellModel
from cellsmith.model._stage import Optim, Stage
from cellsmith.model.dpdcan.hygiene import HygieneMixin
from cellsmith.model.dpdcan.module import DPDCANModule
from cellsmith.model.dpdcan.published import PublishedMixin
from cellsmith.model.dpdcan.queries import QueryMixin
from cellsmith.model.dpdcan.report import private_result, statement
from cellsmith.model.dpdcan.settings import PRIVATE, settle
from cellsmith.model.dpdcan.training import TrainingMixin

__all__ = ["DPDCAN"]


class DPDCAN(HygieneMixin, QueryMixin, PublishedMixin, TrainingMixin, CellModel):
    """Embed and cluster cells that may not be disclosed; the encoder is differentially private, with a checked epsilon.

    Everything that is computed from private cells and may leave the building is a noisy release, entered in a ledger
    with a hard budget. What is computed for the owner's own eyes (embeddings and clusters of the training cells) is
    marked local. There is no ``labels_key``: a model that cannot hold labels cannot leak them.

    Parameters
    ----------
    adata
        Object registered with :meth:`setup_anndata` or :meth:`setup_mudata`.
    registry
        Registry of an earlier set-up, to build a model without data.
    n_clusters
        Number of clusters; None takes Leiden on the owner's side.
    mode
        "dp_pca_init": private principal axes, and a small network between them; "whole": all weights of a network under
        noise; "frozen_decoder": its encoder alone, the decoder public or from private axes; "reference": the published
        scheme, which has no guarantee; "none": no privacy at all.
    target_epsilon
        Hard budget of this model.
    target_delta
        None: the smaller of 1e-5 and 1 / n_units^1.1, which is the largest allowed.
    accountant
        "rdp", or "prv" (about 8 % tighter, slower).
    dp_pca_fraction
        Part of epsilon that the private axes may use alone. 1.0, the default: no private gradients at all, since on no
        file of the benchmark did they win back what they cost. Below 1, for example 0.7, a decoder is trained as well,
        which ``generate`` needs; "frozen_decoder" without public cells must have less than 1.
    cluster_head
        "local": clusters of your own cells, not released; "dp": centres that may be released, paid for.
    latent_density
        "gaussian" buys mean and covariance of the latents, which ``generate(release="dp")`` needs.
    public_adata
        Cells that anybody may see, raw counts in ``.X``: they train the decoder and give scales at no cost.
    n_components
        Private principal axes.
    n_hidden, n_layers
        Width and depth of the small networks.
    n_latent
        Dimensions of the embedding.
    gene_likelihood
        "zinb" or "nb".
    freeze_projection
        Keep the axes fixed after their release.
    sample_rate
        Probability q with which a unit enters a step; public.
    n_steps
        Steps T; public.
    clip_norm
        Largest norm C of a unit's gradient.
    learning_rate
        Of Adam.
    reconstruction_weight, instance_weight
        Weights of the likelihood and of the agreement of two masked views of a cell.
    cluster_weight, repulsion_weight
        Weights of the clustering stage of ``cluster_head="dp"``.
    mask_rate
        Probability with which a view drops a gene.
    max_cells_per_unit
        Most cells of a donor in one step.
    n_units_policy
        "public": their number may be known; "dp_count": it is released with noise.
    moments
        Scales of genes in "whole" and "frozen_decoder": "none", "public" or "dp".
    noised_block
        Of "reference": "encoder_and_trunk" as in the public code, or "encoder" as in the text.
    unsafe_reproducible
        Noise and batches from the seed: a simulation. Otherwise they come from the operating system.
    log_private_metrics
        Keep the number of dropped gradients on the object; it is never written or saved.

    Raises
    ------
    SetupError
        For an unknown choice or a number out of range.
    PrivacyError
        If no promise could be kept with these settings.

    Examples
    --------
    >>> import cellsmith
    >>> adata = cellsmith.datasets.kang_pbmc()
    >>> cellsmith.model.DPDCAN.setup_anndata(adata, gene_panel=500)
    >>> model = cellsmith.model.DPDCAN(adata, n_clusters=8, target_epsilon=4.0)
    >>> model.train()  # doctest: +SKIP
    >>> print(model.privacy_report())  # doctest: +SKIP

    Notes
    -----
    After DP-DCAN (arXiv 2311.03410), of which the abstract and the public code were available. Most of what is here is
    this package's own design; the user guide lists it. Method names follow scvi-tools.
    """

    _method = "dpdcan"
    _module_cls = DPDCANModule
    _one_device = "Noise is drawn once, and the ledger is one object."

    def __init__(
        self,
        adata: Any = None,
        *,
        registry: Mapping[str, Any] | None = None,
        n_clusters: int | None = None,
        mode: str = "dp_pca_init",
        target_epsilon: float = 4.0,
        target_delta: float | None = None,
        accountant: str = "rdp",
        dp_pca_fraction: float = 1.0,
        cluster_head: str = "local",
        latent_density: str | None = None,
        public_adata: Any = None,
        n_components: int = 32,
        n_hidden: int = 64,
        n_layers: int = 1,
        n_latent: int = 32,
        gene_likelihood: str = "zinb",
        freeze_projection: bool = True,
        sample_rate: float = 0.2,
        n_steps: int = 300,
        clip_norm: float = 0.5,
        learning_rate: float = 5e-4,
        reconstruction_weight: float = 0.8,
        instance_weight: float = 0.2,
        cluster_weight: float = 0.4,
        repulsion_weight: float = 0.2,
        mask_rate: float = 0.2,
        max_cells_per_unit: int = 128,
        n_units_policy: str = "public",
        moments: str = "none",
        noised_block: str = "encoder_and_trunk",
        unsafe_reproducible: bool = False,
        log_private_metrics: bool = False,
    ) -> None:
        super().__init__(adata, registry)
        given = locals()
        self.init_params_ = self._get_init_params(given)
        if public_adata is not None:
            # A saved model keeps no cells, public ones neither: only that there were some.
            self.init_params_["non_kwargs"]["public_adata"] = "not kept"
        self._given = settle({k: v for k, v in given.items() if k not in ("self", "adata", "registry", "__class__")})
        setup = self.registry["setup_args"]
        self._layer, self._unit_key = setup.get("layer"), setup.get("privacy_unit_key")
        self._panel = self._settled_panel(setup)
        self._units, self._table, self._local, self._not_finite = None, None, None, 0
        self.released_, self.fixed_, self.n_units_ = [], {}, None
        self.eigenvalues_, self.noise_edge_, self.n_above_edge_ = np.zeros(0), float("nan"), 0
        self.privacy_plan, self.ledger_, self.facts_ = None, None, {}
        if self.adata is not None and self.adata_manager._source_registry is None and mode in PRIVATE:
            self._open_ledger(target_epsilon, target_delta)
        n_batch = len(self.registry["field_registries"]["batch"]["state_registry"]["categorical_mapping"])
        taken = ("n_hidden", "n_layers", "n_latent", "gene_likelihood", "freeze_projection")
        self._module_kwargs = {name: self._given[name] for name in taken} | {
            "mode": mode,
            "n_genes": len(self._panel.names),
            "n_batch": n_batch,
            "n_components": min(n_components, len(self._panel.names)),
            "n_clusters": n_clusters if cluster_head == "dp" or mode == "reference" else 0,
            "mask_rate": float(mask_rate),
            "fixed_decoder": mode == "frozen_decoder" and public_adata is None,
        }
        with isolated():
            self.module = self._new_module()
        self._model_summary_string = f"DPDCAN: mode {mode!r}, {len(self._panel.names)} genes, budget {target_epsilon}"

    def _open_ledger(self, epsilon: float, delta: float | None) -> None:
        _, n_units = panels.unit_codes(self._count_adata().obs, self._unit_key)
        if delta is None:
            delta = min(1e-5, 1 / n_units**1.1)
            if self._given["n_units_policy"] == "dp_count":
                # A power of ten: the largest delta allowed would tell the number of units.
                delta = 10.0 ** math.floor(math.log10(delta) + 1e-9)
        panels.check_budget(epsilon, delta, n_units)
        earlier = panels.warn_of_earlier(self._count_adata().uns, epsilon=epsilon, delta=delta)
        self.ledger_ = Ledger(epsilon, delta, accountant=self._given["accountant"])
        self.facts_ = {"n_units": n_units, "earlier": earlier}

    def _settled_panel(self, setup: Mapping[str, Any]) -> panels.Panel:
        """Return the genes of set-up; from the registered names alone, so that a loaded model has the same."""
        import pandas as pd

        var = pd.DataFrame(index=self._training_genes())
        return panels.panel_of(var, setup.get("gene_panel", "all"), panel_is_public=True)

    @property
    def _with_pca(self) -> bool:
        given = self._given
        return given["mode"] == "dp_pca_init" or (given["mode"] == "frozen_decoder" and given["public_adata"] is None)

    @property
    def _pca_only(self) -> bool:
        return self._given["mode"] == "dp_pca_init" and self._given["dp_pca_fraction"] == 1.0

    def _new_module(self) -> DPDCANModule:
        return DPDCANModule(**self._module_kwargs)

    def _count_adata(self, adata: Any = None) -> Any:
        """Return the AnnData with the counts: the training object, or another."""
        target = self.adata if adata is None else adata
        return target.mod[self._count_modality] if hasattr(target, "mod") else target

    # --- set-up ---------------------------------------------------------------------------------------------------

    @classmethod
    def setup_anndata(
        cls,
        adata: Any,
        *,
        layer: str | None = None,
        batch_key: str | None = None,
        gene_panel: Any = "all",
        privacy_unit_key: str | None = None,
        panel_is_public: bool = False,
        source_registry: Any = None,
    ) -> None:
        """Register an AnnData of raw counts.

        Parameters
        ----------
        adata
            Cells x genes. A cell without counts is kept: its input is zero.
        layer
            Layer with the counts; None is ``.X``.
        batch_key
            Column of ``.obs`` for the decoder; you declare its categories public.
        gene_panel
            Public names; an integer: so many drawn by name alone; "all": you declare ``var_names`` public.
        privacy_unit_key
            Column of ``.obs`` with donors, who are then protected whole; None protects single cells.
        panel_is_public
            The genes were not picked on these cells, although they are marked highly variable.
        source_registry
            Registry of a saved model; set by ``load``.

        Raises
        ------
        SetupError
            If counts, columns or panel cannot be used; the object is then untouched.
        PrivacyError
            If the genes were picked on these cells, or donors are too few.
        """
        cls._set_up(adata, setup_arguments(locals()), source_registry)

    @classmethod
    def setup_mudata(
        cls,
        mdata: Any,
        *,
        layer: str | None = None,
        batch_key: str | None = None,
        gene_panel: Any = "all",
        privacy_unit_key: str | None = None,
        panel_is_public: bool = False,
        modalities: Mapping[str, str | None] | None = None,
        source_registry: Any = None,
    ) -> None:
        """Register one modality of a MuData.

        Parameters
        ----------
        mdata
            The object.
        layer, batch_key, gene_panel, privacy_unit_key, panel_is_public
            As in :meth:`setup_anndata`; the column of donors lies in the modality of the counts.
        modalities
            Argument name -> modality; an argument that is not in it is looked up at the top level.
        source_registry
            Registry of a saved model; set by ``load``.

        Raises
        ------
        SetupError
            If ``modalities`` is None, or counts, columns or panel cannot be used.
        PrivacyError
            As in :meth:`setup_anndata`.
        """
        cls._set_up(mdata, setup_arguments(locals()), source_registry)

    @classmethod
    def _set_up(cls, data: Any, args: dict[str, Any], source_registry: Any) -> None:
        carrier = counts_carrier(data, args.get("modalities"))
        check_names(carrier)
        panel = panels.panel_of(carrier.var, args["gene_panel"], panel_is_public=args["panel_is_public"])
        if not isinstance(args["gene_panel"], str | int):
            args["gene_panel"] = [str(name) for name in panel.names]
        panels.check_private_counts(carrier, args["layer"])
        obs = place_of(data, args.get("modalities"), "batch_key").obs
        check_covariates(obs, categorical={"batch_key": args["batch_key"]})
        if source_registry is None:
            panels.unit_codes(carrier.obs, args["privacy_unit_key"])
            if args["gene_panel"] == "all":
                cls._warn(
                    "gene_panel='all' declares all var_names public: they must not have been chosen on these cells."
                )
            if args["privacy_unit_key"] is None:
                cls._warn("The unit is a cell: a donor with k cells is bounded by k times epsilon only.")
        named = ("layer", "batch_key", "modalities")
        fields = cell_fields(**{k: args[k] for k in named if k in args})
        cls._register(data, fields, args, source_registry=source_registry)

    @staticmethod
    def _warn(text: str) -> None:
        import warnings

        warnings.warn(text, PrivacyWarning, stacklevel=5)

    # --- stages ---------------------------------------------------------------------------------------------------

    def _weights(self, stage: str = "instance") -> dict[str, float]:
        given = self._given
        second = "cluster" if stage == "cluster" else "instance"
        return {"reconstruction": given["reconstruction_weight"], second: given[f"{second}_weight"]}

    def stages(self) -> tuple[Stage, ...]:
        """Return the stages; ``local`` runs last, after the last entry of the ledger."""
        mode, given = self._given["mode"], self._given
        local = Stage(name="local", solve="_settle_local")
        if mode not in PRIVATE:
            return (*self._published_stages(), local)
        plan = Optim(optimizer="adam", lr=given["learning_rate"], schedule="constant", patience=None, keep_best=False)
        trained: tuple[str, ...] = ("encoder", "decoder", "log_theta", "zero_logit", "axes")
        if mode == "frozen_decoder":
            trained = ("encoder",)
        out = [Stage(name="release", solve="_release")]
        if given["public_adata"] is not None:
            public = Optim(optimizer="adam", lr=1e-3, schedule="constant", patience=10)
            out.append(
                Stage(
                    name="public",
                    max_epochs=50,
                    trains=("encoder", "decoder", "log_theta", "zero_logit"),
                    loss="loss_plain",
                    weights=self._weights(),
                    batch_size=256,
                    plan=public,
                )
            )
        if not self._pca_only:
            length = math.ceil(given["n_steps"] * given["sample_rate"])
            common: dict[str, Any] = {"batches": "poisson", "plan": plan}
            out.append(Stage(name="instance", max_epochs=length, trains=trained, weights=self._weights(), **common))
        if given["cluster_head"] == "dp":
            out.append(Stage(name="seeds", solve="_seed_centers"))
            if not self._pca_only:
                length = math.ceil(self._n_cluster_steps * given["sample_rate"])
                out.append(
                    Stage(
                        name="cluster",
                        max_epochs=length,
                        trains=(*trained, "centers"),
                        weights=self._weights("cluster"),
                        **common,
                    )
                )
        if given["latent_density"] is not None:
            out.append(Stage(name="density", solve="_buy_density"))
        return (*out, local)

    # --- what is said and written ---------------------------------------------------------------------------------

    def privacy_report(self) -> Statement:
        """Return what may be said about the privacy of this model, output by output; ``print`` it to read a page.

        Returns
        -------
        The statement; its epsilon is that of the executed events.
        """
        return statement(self)

    @property
    def privacy_spent(self) -> tuple[float, float]:
        """Epsilon and delta of the executed events; infinite epsilon where nothing holds."""
        if self.ledger_ is None:
            return float("inf"), 1.0
        return self.ledger_.epsilon, self.ledger_.delta

    def results(self, adata: Any = None) -> _record.Result:
        """Return clusters, embedding and the block of ``.uns``.

        Parameters
        ----------
        adata
            Cells; None is the training object.

        Returns
        -------
        What :meth:`write` writes.

        Raises
        ------
        NotTrainedError
            If the model is not trained, or its local head was stripped.
        """
        self._require_trained("results")
        if self._given["mode"] in PRIVATE and self.ledger_ is None:
            raise SetupError("This model has no ledger. Train it, or load a saved one.")
        return private_result(self, adata)
