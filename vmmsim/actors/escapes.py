"""stub"""
from __future__ import annotations
import attrs
from vmmsim.translation.escape_filter import random_filter

@attrs.frozen
class Escapes:
    filter: object
    budget: int
    members: tuple = ()
    @classmethod
    def make(cls, *, bits, hashes, budget, random):
        return cls(random_filter(random, bits=bits, hashes=hashes) if bits else None, budget if bits else 0, ())
    def admits(self, n): return len(self.members)+n <= self.budget
    def insert(self, gfns): return attrs.evolve(self, filter=self.filter.with_members(*gfns), members=(*self.members, *gfns))
    def only(self, gfns):
        if self.filter is None: return self
        return attrs.evolve(self, filter=attrs.evolve(self.filter, members=tuple(gfns)), members=tuple(gfns))
