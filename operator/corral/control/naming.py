"""Which ModelDeployment owns which served name.

`NAMESPACE/NAME` is always its own. The bare name and the aliases belong to whoever holds them already, else to the oldest object, ties by
`namespace/name`. An index by name keeps each change as cheap as the names it touches. Nothing here writes or does I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(slots=True)
class _Claim:
    created: float
    names: tuple[str, ...]  # in the order of its spec, without the full name
    owned: set[str] = field(default_factory=set)
    taken: dict[str, str] = field(default_factory=dict)  # name -> who has it


@dataclass(slots=True)
class Names:
    _claims: dict[str, _Claim] = field(default_factory=dict)
    _claimants: dict[str, set[str]] = field(default_factory=dict)
    _holder: dict[str, str] = field(default_factory=dict)
    _open: set[str] = field(default_factory=set)

    def put(self, key: str, created: float, names: Iterable[str], held: Iterable[str]) -> None:
        """A model as it is now. `held`: what its status says that it has; counts for names that nobody holds yet."""
        wanted = tuple(dict.fromkeys(name for name in names if name != key))
        old = self._claims.get(key)
        if old is not None and (old.created, old.names) == (created, wanted):
            return
        for name in old.names if old else ():
            self._claimants[name].discard(key)
        self._claims[key] = claim = _Claim(created, wanted)
        for name in wanted:
            self._claimants.setdefault(name, set()).add(key)
            if old is not None and name in old.owned:
                claim.owned.add(name)
        remembered = set(held)
        for name in wanted:
            if name in remembered and name not in self._holder:
                claim.owned.add(name)
        self._open.update(wanted, old.names if old else (), (key,))

    def remove(self, key: str) -> None:
        old = self._claims.pop(key, None)
        if old is None:
            return
        for name in old.names:
            self._claimants[name].discard(key)
            if not self._claimants[name]:
                del self._claimants[name]
        self._open.update(old.names, (key,))

    def resolve(self) -> set[str]:
        """Settle every name that something changed about; who has other names now than before."""
        changed: set[str] = set()
        for name in self._open:
            claimants = self._claimants.get(name, set())
            winner = self._winner(name, claimants)
            if winner is None:
                self._holder.pop(name, None)
            else:
                self._holder[name] = winner
            for key in claimants:
                claim = self._claims[key]
                before = (name in claim.owned, claim.taken.get(name))
                if key == winner:
                    claim.owned.add(name)
                    claim.taken.pop(name, None)
                else:
                    claim.owned.discard(name)
                    claim.taken[name] = winner or name
                if before != (name in claim.owned, claim.taken.get(name)):
                    changed.add(key)
        changed.update(name for name in self._open if name in self._claims)
        self._open.clear()
        return changed

    def _winner(self, name: str, claimants: set[str]) -> str | None:
        if name in self._claims:
            return name  # another model's full name
        if not claimants:
            return None
        holding = [key for key in claimants if name in self._claims[key].owned]
        return min(holding or claimants, key=lambda key: (self._claims[key].created, key))

    def served(self, key: str) -> tuple[str, ...]:
        claim = self._claims.get(key)
        return (key, *(name for name in claim.names if name in claim.owned)) if claim else (key,)

    def taken(self, key: str) -> Mapping[str, str]:
        """Names that it asks for and another one has: name -> whose."""
        claim = self._claims.get(key)
        return claim.taken if claim else NONE
