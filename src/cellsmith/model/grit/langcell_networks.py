"""The two encoders of LangCell, their projections and the matching head.

The cell encoder is the BERT of transformers. The text encoder is written here, because transformers offers its
cross-attention in a causal decoder with a segment embedding and one width, and LangCell's is bidirectional, has no
segments and may read cells of another width. Names of weights are those of the public checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cellsmith._errors import SetupError

KeysValues: TypeAlias = tuple[Tensor, Tensor]

__all__ = ["Networks", "TextEncoder", "cell_encoder", "linear", "pad", "text_encoder"]

_ACTIVATIONS = {"gelu": F.gelu, "gelu_new": partial(F.gelu, approximate="tanh"), "relu": F.relu}
_SETTINGS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)


class _Attention(nn.Module):
    def __init__(self, n_hidden: int, n_heads: int, n_source: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query = nn.Linear(n_hidden, n_hidden)
        self.key = nn.Linear(n_source, n_hidden)
        self.value = nn.Linear(n_source, n_hidden)

    def _heads(self, x: Tensor, n: int) -> Tensor:
        return x.reshape(n, -1, self.n_heads, x.shape[-1] // self.n_heads).transpose(1, 2)

    def project(self, source: Tensor) -> KeysValues:
        """Return keys and values of (B, M, W), each (B, heads, M, H / heads)."""
        return self._heads(self.key(source), len(source)), self._heads(self.value(source), len(source))

    def forward(self, h: Tensor, known: KeysValues, mask: Tensor) -> Tensor:
        """Attend from h (B * S, L, H) where mask (B, M) allows; S rows in sequence share the keys of one source."""
        query = self._heads(self.query(h), len(mask))
        out = F.scaled_dot_product_attention(query, *known, attn_mask=mask[:, None, None, :])
        return out.transpose(1, 2).reshape(h.shape)


class _Residual(nn.Module):
    def __init__(self, n_in: int, n_hidden: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(n_in, n_hidden)
        self.LayerNorm = nn.LayerNorm(n_hidden, eps=eps)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + h)


class _Layer(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        n_hidden, n_heads, n_inner = (config[k] for k in ("hidden_size", "num_attention_heads", "intermediate_size"))
        eps = config.get("layer_norm_eps", 1e-12)

        def block(n_source: int) -> nn.ModuleDict:
            attention = _Attention(n_hidden, n_heads, n_source)
            return nn.ModuleDict({"self": attention, "output": _Residual(n_hidden, n_hidden, eps)})

        self.attention = block(n_hidden)
        self.crossattention = block(config.get("encoder_width", n_hidden))
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(n_hidden, n_inner)})
        self.output = _Residual(n_inner, n_hidden, eps)
        self._activation = _ACTIVATIONS[config.get("hidden_act", "gelu")]

    def forward(self, h: Tensor, mask: Tensor, known: KeysValues | None, cell_mask: Tensor | None) -> Tensor:
        own = self.attention["self"]
        h = self.attention["output"](own(h, own.project(h), mask), h)
        if known is not None:
            h = self.crossattention["output"](self.crossattention["self"](h, known, cell_mask), h)
        return self.output(self._activation(self.intermediate["dense"](h)), h)


class TextEncoder(nn.Module):
    """A bidirectional BERT without segments that can attend to the tokens of a cell in every layer.

    Parameters
    ----------
    config
        Settings in transformers' names; ``encoder_width`` is the width of the cell states.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        n_hidden = config["hidden_size"]
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(config["vocab_size"], n_hidden),
                "position_embeddings": nn.Embedding(config["max_position_embeddings"], n_hidden),
                "LayerNorm": nn.LayerNorm(n_hidden, eps=config.get("layer_norm_eps", 1e-12)),
            }
        )
        layers = nn.ModuleList(_Layer(config) for _ in range(config["num_hidden_layers"]))
        self.encoder = nn.ModuleDict({"layer": layers})

    def project(self, cells: Tensor) -> list[KeysValues]:
        """Return the keys and values of cell states ``(B, M, W)`` in every layer, for any number of texts."""
        return [layer.crossattention["self"].project(cells) for layer in self.encoder["layer"]]

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        *,
        known: Sequence[KeysValues] | None = None,
        cell_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the states of the tokens.

        Parameters
        ----------
        ids, mask
            ``(B, L)`` tokens and whether they count. With cells they are ``(B * S, L)``: the S texts of the first
            cell, then those of the second, and so on.
        known, cell_mask
            What `project` made of B cells, and ``(B, M)`` which of their tokens count.

        Returns
        -------
        ``(B, L, H)`` or ``(B * S, L, H)``.
        """
        position = torch.arange(ids.shape[1], device=ids.device)
        h = self.embeddings["word_embeddings"](ids) + self.embeddings["position_embeddings"](position)
        h = self.embeddings["LayerNorm"](h)
        for i, layer in enumerate(self.encoder["layer"]):
            h = layer(h, mask, None if known is None else known[i], cell_mask)
        return h


def _plain(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off the prefixes that wrappers leave."""
    return {re.sub(r"^(module\.|bert\.)+", "", name): value for name, value in weights.items()}


def _load(network: nn.Module, weights: Mapping[str, Tensor], *, what: str, optional: str) -> None:
    """Fill a network; ``optional`` is a pattern of names that may be missing or too many."""
    own = network.state_dict()
    wrong = [f"{k} {tuple(weights[k].shape)}" for k in own if k in weights and weights[k].shape != own[k].shape]
    missing = [k for k in own if k not in weights and not re.search(optional, k)]
    extra = [k for k in weights if k not in own and not re.search(optional, k)]
    if wrong or missing or extra:
        raise SetupError(
            f"The weights of the {what} do not fit its config.json: missing {missing[:3]} ({len(missing)}), unknown "
            f"{extra[:3]} ({len(extra)}), of another shape {wrong[:3]} ({len(wrong)}). Take both from one folder."
        )
    network.load_state_dict({k: v for k, v in weights.items() if k in own}, strict=False)


def cell_encoder(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    """Return transformers' BERT with the given weights.

    Raises
    ------
    SetupError
        If the weights do not fit the settings.
    """
    from transformers import BertConfig, BertModel

    known = {k: v for k, v in config.items() if k not in {"model_type", "dtype", "torch_dtype", "transformers_version"}}
    network = BertModel(BertConfig(**known), add_pooling_layer=False)
    _load(network, _plain(weights), what="cell encoder", optional=r"^pooler\.|position_ids$|token_type_ids$|^cls\.")
    return network


def text_encoder(config: Mapping[str, Any], weights: Mapping[str, Tensor], *, matching: bool) -> TextEncoder:
    """Return the text encoder with the given weights.

    Parameters
    ----------
    config, weights
        Settings and tensors in transformers' names.
    matching
        Whether the cross-attention has to be there.

    Raises
    ------
    SetupError
        If a setting is missing or unknown, or the weights do not fit.
    """
    if absent := [k for k in _SETTINGS if k not in config]:
        raise SetupError(f"config.json of the text encoder lacks {absent}; expected {list(_SETTINGS)}.")
    if (act := config.get("hidden_act", "gelu")) not in _ACTIVATIONS:
        raise SetupError(f"config.json of the text encoder has hidden_act={act!r}; expected {sorted(_ACTIVATIONS)}.")
    weights = _plain(weights)
    # the weights say how wide the cells are; not every config.json does
    key = weights.get("encoder.layer.0.crossattention.self.key.weight")
    network = TextEncoder(config if key is None else {**config, "encoder_width": key.shape[1]})
    optional = r"^pooler\.|position_ids$" + ("" if matching else r"|\.crossattention\.")
    _load(network, weights, what="text encoder", optional=optional)
    return network


def linear(weights: Mapping[str, Tensor], *, what: str) -> nn.Linear:
    """Return the linear map of a file with a weight and a bias.

    Raises
    ------
    SetupError
        If the file holds something else.
    """
    found = {name.rsplit(".", 1)[-1]: value for name, value in weights.items()}
    if set(found) != {"weight", "bias"} or len(weights) != 2 or found["weight"].shape[:1] != found["bias"].shape:
        raise SetupError(f"The {what} holds {sorted(weights)}; expected one weight and one bias.")
    out = nn.Linear(found["weight"].shape[1], found["weight"].shape[0])
    out.load_state_dict(found)
    return out


def pad(lists: Sequence[Any], *, fill: int) -> tuple[Tensor, Tensor]:
    """Return token lists as ``(n, longest)`` int64 filled with ``fill``, and a mask of what is a token."""
    rows = [torch.as_tensor(row, dtype=torch.long) for row in lists]
    length = torch.tensor([row.numel() for row in rows])
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)
    return ids, torch.arange(ids.shape[1])[None, :] < length[:, None]


@dataclass
class Networks:
    """The encoders with their projections into the common space, and the matching head.

    Parameters
    ----------
    cell, cell_projection
        Cell encoder, and hidden -> common space.
    text, text_projection
        Text encoder, and hidden -> common space.
    head
        Hidden -> 2 (no match, match), or None where matching is not wanted.
    """

    cell: nn.Module
    cell_projection: nn.Linear
    text: TextEncoder
    text_projection: nn.Linear
    head: nn.Linear | None = None

    def __post_init__(self) -> None:
        if self.cell_projection.out_features != self.text_projection.out_features:
            raise SetupError(
                f"Cells are projected to {self.cell_projection.out_features} numbers and texts to "
                f"{self.text_projection.out_features}; expected the same. Take all files from one model."
            )
        if self.head is None:
            return
        if self.head.out_features != 2:
            raise SetupError(f"The matching head has {self.head.out_features} outputs; expected 2.")
        wide, read = (
            self.cell_projection.in_features,
            self.text.encoder["layer"][0].crossattention["self"].key.in_features,
        )
        if wide != read:
            raise SetupError(
                f"The cell encoder is {wide} wide and the cross-attention of the texts reads {read}; expected the "
                "same. Take all files from one model."
            )

    def to(self, device: torch.device, dtype: torch.dtype) -> Networks:
        """Move and cast all parts, in evaluation mode and without gradients."""
        for part in (self.cell, self.cell_projection, self.text, self.text_projection, self.head):
            if part is not None:
                part.to(device=device, dtype=dtype).eval().requires_grad_(False)
        return self

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        return self.cell_projection.weight.device

    def cells(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return token states ``(B, M, W)`` and unit vectors ``(B, d)`` of cells."""
        states = self.cell(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return states, F.normalize(self.cell_projection(states[:, 0]).float(), dim=-1)

    def texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return unit vectors ``(B, d)`` of texts."""
        return F.normalize(self.text_projection(self.text(ids, mask)[:, 0]).float(), dim=-1)

    def match(self, known: Sequence[KeysValues], cell_mask: Tensor, *, ids: Tensor, mask: Tensor) -> Tensor:
        """Return log p(match) ``(B, S)`` of cells with S texts each.

        Parameters
        ----------
        known, cell_mask
            What the text encoder's `project` made of B cells, and ``(B, M)`` which of their tokens count.
        ids, mask
            ``(B, S, L)`` tokens of the texts.
        """
        n, s, length = ids.shape
        flat, seen = ids.reshape(n * s, length), mask.reshape(n * s, length)
        h = self.text(flat, seen, known=known, cell_mask=cell_mask)
        return F.log_softmax(self.head(h[:, 0]).float(), dim=-1)[:, 1].reshape(n, s)
