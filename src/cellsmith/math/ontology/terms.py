"""The graph of terms: names, exact synonyms, ancestors, depths."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter

from cellsmith._errors import SetupError, nearest

__all__ = ["Ontology", "term_id"]

Parents = Mapping[str, tuple[str, ...]]

_IRI = re.compile(r"(?:.*[/#])?([A-Za-z][A-Za-z0-9.]*)_([A-Z]*[0-9]+)$")


def term_id(text: str) -> str:
    """Return the short form of an identifier: ``http://.../CL_0000084`` and ``CL_0000084`` become ``CL:0000084``."""
    found = _IRI.match(text.strip())
    # digits behind the underscore: a class name such as CD4_T is no identifier
    return f"{found[1]}:{found[2]}" if found else text.strip()


@dataclass(frozen=True, eq=False, repr=False)
class Ontology:
    """Terms and their parents; obsolete terms are left out, and their replacements are kept as further identifiers.

    Two ontologies are equal when their texts are.

    Parameters
    ----------
    version
        The file's version line; empty if it has none.
    digest
        SHA-256 of the text, hexadecimal.
    names
        Identifier -> name.
    is_a, part_of
        Identifier -> identifiers of the direct parents, sorted; terms without parents are absent.
    synonyms
        Identifier -> exact synonyms.
    definitions
        Identifier -> definition.
    alternatives
        Further identifier (merged or replaced) -> identifier.

    Raises
    ------
    SetupError
        If is_a or part_of runs in a circle; the message names it.

    Examples
    --------
    >>> ontology = Ontology("1", "", {"CL:1": "cell", "CL:2": "T cell"}, {"CL:2": ("CL:1",)})
    >>> sorted(ontology.ancestors("CL:2"))
    ['CL:1', 'CL:2']
    """

    version: str
    digest: str
    names: Mapping[str, str]
    is_a: Parents
    part_of: Parents = field(default_factory=dict)
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    definitions: Mapping[str, str] = field(default_factory=dict)
    alternatives: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for relation, parents in (("is_a", self.is_a), ("part_of", self.part_of)):
            self._order(parents, relation)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ontology) and (self.digest, self.version) == (other.digest, other.version)

    def __hash__(self) -> int:
        return hash((self.digest, self.version))

    def __repr__(self) -> str:
        return f"Ontology({len(self.names)} terms, version {self.version or 'not stated'!r}, {self.digest[:12]})"

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, term: object) -> bool:
        return term in self.names

    def _order(self, parents: Parents, relation: str) -> tuple[str, ...]:
        """Return the terms, parents first."""
        sorter: TopologicalSorter[str] = TopologicalSorter({t: parents.get(t, ()) for t in self.names})
        try:
            return tuple(sorter.static_order())
        except CycleError as error:
            # graphlib lists every node before the one that it is a parent of
            circle = " -> ".join(f"{t} ({self.names.get(t) or 'no name'})" for t in reversed(error.args[1]))
            raise SetupError(
                f"Found a circle in {relation}: {circle}; expected that no term is its own ancestor. Remove one of "
                "these relations from the file, or use the ontology's released version."
            ) from None

    @cached_property
    def _both(self) -> Parents:
        joined = {t: tuple(sorted({*self.is_a.get(t, ()), *self.part_of.get(t, ())})) for t in self.names}
        return {t: above for t, above in joined.items() if above}

    def parents(self, term: str, *, part_of: bool = False) -> tuple[str, ...]:
        """Return the direct parents.

        Parameters
        ----------
        term
            Identifier.
        part_of
            Whether part_of counts beside is_a.

        Raises
        ------
        SetupError
            If the term is unknown.
        """
        if term not in self.names:
            raise SetupError(f"Found no term {term!r} in {self!r}. {nearest(term, self.names)}")
        return (self._both if part_of else self.is_a).get(term, ())

    def ancestors(self, term: str, *, part_of: bool = False) -> frozenset[str]:
        """Return the term and everything above it; a term that two paths reach is there once.

        Parameters
        ----------
        term
            Identifier.
        part_of
            Whether part_of counts beside is_a.

        Raises
        ------
        SetupError
            If the term is unknown.
        """
        seen, waiting = {term}, list(self.parents(term, part_of=part_of))
        while waiting:
            above = waiting.pop()
            if above not in seen:
                seen.add(above)
                waiting.extend(self.parents(above, part_of=part_of))
        return frozenset(seen)

    def depth(self, term: str, *, part_of: bool = False) -> int:
        """Return the number of steps of the longest path to a root, so that a child is always deeper than its parents.

        Parameters
        ----------
        term
            Identifier.
        part_of
            Whether part_of counts beside is_a.

        Raises
        ------
        SetupError
            If the term is unknown, or the union of is_a and part_of runs in a circle.
        """
        self.parents(term)
        return (self._depths_both if part_of else self._depths)[term]

    def _longest(self, parents: Parents, relation: str) -> dict[str, int]:
        out: dict[str, int] = {}
        for term in self._order(parents, relation):
            out[term] = max((out[above] + 1 for above in parents.get(term, ())), default=0)
        return out

    @cached_property
    def _depths(self) -> dict[str, int]:
        return self._longest(self.is_a, "is_a")

    @cached_property
    def _depths_both(self) -> dict[str, int]:
        return self._longest(self._both, "is_a and part_of together")

    @cached_property
    def _by_name(self) -> dict[str, str | None]:
        return _unambiguous((name, term) for term, name in self.names.items() if name)

    @cached_property
    def _by_synonym(self) -> dict[str, str | None]:
        return _unambiguous((text, term) for term, texts in self.synonyms.items() for text in texts)

    def find(self, name: str) -> str | None:
        """Return the identifier of a class: by identifier, then exact name, then exact synonym.

        Parameters
        ----------
        name
            What the class is called. Identifiers may have the form ``CL_0000084`` or a whole address.

        Returns
        -------
        None when nothing matches, or when two terms share the name or synonym that does.
        """
        short = term_id(name)
        if short in self.names:
            return short
        if short in self.alternatives:
            return self.alternatives[short]
        return self._by_name[name] if name in self._by_name else self._by_synonym.get(name)


def _unambiguous(pairs: Iterable[tuple[str, str]]) -> dict[str, str | None]:
    """Return text -> term, None where several terms share it."""
    out: dict[str, str | None] = {}
    for text, term in pairs:
        out[text] = term if out.get(text, term) == term else None
    return out
