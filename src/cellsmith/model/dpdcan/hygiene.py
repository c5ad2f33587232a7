"""What a saved file may hold: an allow-list, so that whatever is added later stays out until somebody lets it in."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from cellsmith._errors import PrivacyError, PrivacyWarning

__all__ = ["HygieneMixin"]

# Attributes of a released file. Histories, split, notes, trainer and the local head are not among them.
RELEASED = (
    *("init_params_", "registry_", "is_trained_", "seed_", "device_"),
    *("released_", "n_units_", "eigenvalues_", "noise_edge_", "n_above_edge_", "ledger_", "facts_"),
)
MARK = "LOCAL_ONLY"


class HygieneMixin:
    """Saving of :class:`cellsmith.model.DPDCAN`."""

    _keeps_local = True

    def _get_user_attributes(self) -> list[tuple[str, Any]]:
        found = dict(super()._get_user_attributes())
        if self._keeps_local:
            return list(found.items())
        kept = {k: found[k] for k in RELEASED if k in found}
        if "registry_" in kept:
            kept["registry_"] = self._without_numbers(kept["registry_"])
        if self._given["n_units_policy"] == "dp_count":
            kept["facts_"] = {**kept["facts_"], "n_units": self.n_units_ or 1.0}
        if not self._given["unsafe_reproducible"]:
            kept["seed_"] = None
        return list(kept.items())

    def _without_numbers(self, registry: Any) -> Any:
        """Return the registry without its identifier, with the noisy number of cells where the true one is secret."""
        out = copy.deepcopy(registry)
        # Random for every registration: the same model then leaves the same file.
        out["_scvi_uuid"] = "released"
        if self._given["n_units_policy"] == "dp_count":
            for field in out["field_registries"].values():
                for name in ("n_cells", "n_obs"):
                    if name in field.get("summary_stats", {}):
                        field["summary_stats"][name] = round(self.n_units_ or 1)
        return out

    def save(
        self,
        dir_path: str,
        *,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        include_local: bool = False,
        save_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Save the model; by default only what may leave the building.

        Parameters
        ----------
        dir_path
            Folder.
        prefix
            Of the file's name.
        overwrite
            Replace an earlier model there.
        save_anndata
            Save the cells as well; needs ``include_local=True``.
        include_local
            Keep the local head and histories, and leave a file ``LOCAL_ONLY`` beside the weights.
        save_kwargs
            For ``torch.save``.

        Raises
        ------
        PrivacyError
            If cells are to be saved beside a model that is to be released.
        """
        if save_anndata and not include_local:
            raise PrivacyError(
                "save_anndata=True puts the private cells beside the model. Type include_local=True as well."
            )
        self._keeps_local = bool(include_local)
        try:
            super().save(dir_path, prefix, overwrite, save_anndata, save_kwargs)
        finally:
            self._keeps_local = True
        mark = Path(dir_path) / f"{prefix or ''}{MARK}"
        mark.unlink(missing_ok=True)
        if include_local:
            mark.write_text("This folder holds results computed without noise from private cells. It must not leave.\n")
            self._note(f"{dir_path} holds local results; it must not leave the building.", PrivacyWarning)

    @property
    def local_head_(self) -> Any:
        """The local head; None in a released model."""
        return self._local

    @local_head_.setter
    def local_head_(self, head: Any) -> None:
        """Take over the local head of a file that was saved with it."""
        self._local = head
