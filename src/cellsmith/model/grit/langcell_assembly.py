"""From a folder to networks, vocabulary and tokens of texts that fit each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cellsmith._errors import SetupError
from cellsmith.model.grit.langcell_files import read_config, read_dictionary, read_weights
from cellsmith.model.grit.langcell_networks import Networks, cell_encoder, linear, text_encoder
from cellsmith.model.grit.langcell_tokens import GeneVocabulary

__all__ = ["read_networks", "read_vocabulary", "text_tokens"]

SPECIAL_TOKENS = ("[DEC]", "[ENC]")  # of the published text vocabulary, behind PubMedBERT's
_WEIGHT_FILES = ("model", "pytorch_model")


def read_vocabulary(folder: Path, *, allow_pickle: bool) -> GeneVocabulary:
    """Return the genes and tokens of a folder.

    Raises
    ------
    SetupError
        If a dictionary is missing, is a pickle that was not asked for, or does not fit the other.
    """
    return GeneVocabulary(
        read_dictionary(folder, "token_dictionary", allow_pickle=allow_pickle),
        read_dictionary(folder, "gene_median_dictionary", allow_pickle=allow_pickle),
        read_dictionary(folder, "gene_name_id_dict", values=str, allow_pickle=allow_pickle, required=False),
    )


def read_networks(folder: Path, *, matching: bool) -> tuple[Networks, dict[str, int]]:
    """Return the networks on the CPU, and the sizes that tokens must respect.

    Raises
    ------
    SetupError
        If a file is missing or does not fit the others.
    """
    cell, text = (read_config(folder / name) for name in ("cell_bert", "text_bert"))
    networks = Networks(
        cell=cell_encoder(cell, read_weights(folder / "cell_bert", _WEIGHT_FILES)),
        cell_projection=linear(read_weights(folder, ["cell_proj"]), what="cell projection"),
        text=text_encoder(text, read_weights(folder / "text_bert", _WEIGHT_FILES), matching=matching),
        text_projection=linear(read_weights(folder, ["text_proj"]), what="text projection"),
        head=linear(read_weights(folder, ["ctm_head"]), what="matching head") if matching else None,
    )
    words, positions = (
        networks.cell.get_input_embeddings().num_embeddings,
        networks.cell.config.max_position_embeddings,
    )
    return networks, {
        "cell_vocabulary": words,
        "cell_length": positions,
        "text_vocabulary": text["vocab_size"],
        "text_length": min(512, text["max_position_embeddings"]),
    }


def text_tokens(
    folder: Path, texts: Mapping[str, Sequence[str]], *, n_tokens: int, most: int
) -> tuple[dict[str, list[list[int]]], int]:
    """Return class -> token lists, and the token that fills; texts longer than ``most`` are cut.

    Raises
    ------
    SetupError
        If there is no vocabulary, or it is larger than the text encoder's.
    """
    from transformers import BertTokenizerFast

    places = [place for place in (folder / "tokenizer", folder / "text_bert", folder) if _has_vocabulary(place)]
    if not places:
        raise SetupError(
            f"Found no vocabulary of the texts; expected vocab.txt or tokenizer.json in {folder / 'tokenizer'}."
        )
    tokenizer = BertTokenizerFast.from_pretrained(str(places[0]), local_files_only=True)
    tokenizer.add_tokens(list(SPECIAL_TOKENS), special_tokens=True)
    out = {
        name: [list(row) for row in tokenizer(list(given), truncation=True, max_length=most)["input_ids"]]
        for name, given in texts.items()
    }
    highest = max(token for rows in out.values() for row in rows for token in row)
    if highest >= n_tokens:
        raise SetupError(
            f"The text vocabulary gives token {highest}, and the text encoder knows {n_tokens}; expected the "
            "tokenizer that the encoder was trained with."
        )
    return out, int(tokenizer.pad_token_id)


def _has_vocabulary(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json"))
