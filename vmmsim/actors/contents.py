"""What pages hold: a number for each content, so that equal pages can be found and lost ones noticed. No bytes.

A number lives where the bytes would: with the host frame, or with the slot of a swap device. Whoever copies a page
copies its number; a page that was moved without being copied holds what its frame held before. Number 0 is the page
of zeros; some numbers are the same for all pages that hold the same thing; a write gives one that nobody had before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from vmmsim import rates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmmsim.actors.vm import VirtualMachine

ZERO: Final = 0
"""The content of a page of zeros."""
_FAMILY_PAGES: Final = 1 << 18
"""Numbers kept for what one family of equal pages may hold."""
_SHIFTS: Final = (np.uint64(33), np.uint64(29), np.uint64(32))


class Contents:
    """The contents of all host frames, and where new numbers come from."""

    def __init__(self, frames: int) -> None:
        self.of_frame = np.zeros(frames, np.int32)
        """int32[frames]: what each host frame holds, as far as guests have written to it."""
        self._next = 1
        self._families: dict[str, int] = {}

    def fresh(self, count: int) -> NDArray[np.int32]:
        """Return int32[count]: contents that no page ever held."""
        first = self._next
        self._next += count
        if self._next > np.iinfo(np.int32).max:
            raise OverflowError("pages were written 2^31 times: contents have no more numbers")
        return np.arange(first, self._next, dtype=np.int32)

    def common(self, family: str, index: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return int32[n]: the contents ``index`` of a family, the same for all who name it."""
        if family not in self._families:
            self._families[family] = int(self.fresh(_FAMILY_PAGES)[0])
        return (self._families[family] + index % _FAMILY_PAGES).astype(np.int32)

    def zero(self, frames: NDArray[np.int64], *, each: int = 1) -> None:
        """Note that frames, each the first of ``each``, were zeroed."""
        self.of_frame[(frames[:, None] + np.arange(each)).ravel() if each > 1 else frames] = ZERO

    def copy(self, old: NDArray[np.int64], new: NDArray[np.int64]) -> None:
        """Note that frames ``old`` were copied to ``new`` (int64[n]), all of them read before any is written."""
        self.of_frame[new] = self.of_frame[old]


class GuestContents:
    """What the pages of one VM come to hold: classes drawn for each page, by shares in ``rates.toml``.

    The first write to a page of a program makes it one of: zeros still; a page that all guests of an image family
    have; a page that this guest has several of; a page like no other. Every later write makes it like no other.
    """

    def __init__(self, vm: VirtualMachine, contents: Contents, seed: int) -> None:
        self.vm = vm
        self.contents = contents
        self._key = np.uint64(seed)
        self._family = f"image.{vm.description.image}"
        self._own = f"vm.{vm.name}"
        shares = [rates.number(f"contents.{name}") for name in ("zero_share", "image_share", "own_share")]
        self._bounds = np.cumsum(shares)
        self._own_copies = int(rates.number("contents.own_copies"))
        self._kernel = rates.number("contents.kernel_image_share")

    def frames(self, gfns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return int64[n]: the host frames behind ``gfns``, all of which are resident."""
        return self.vm.nested.translate(gfns)

    def first_written(self, gfns: NDArray[np.int64], numbers: NDArray[np.int64]) -> None:
        """Give pages that were zeroed and written for the first time their contents, by their ``numbers``."""
        share, drawn = self._draw(numbers)
        kind = np.searchsorted(self._bounds, share, side="right")
        found = np.zeros(gfns.size, np.int32)
        image, own, unique = (kind == 1), (kind == 2), (kind == 3)
        found[image] = self.contents.common(self._family, drawn[image])
        pool = max(round(self.vm.memory_pages * float(self._bounds[2] - self._bounds[1]) / self._own_copies), 1)
        found[own] = self.contents.common(self._own, drawn[own] % pool)
        found[unique] = self.contents.fresh(int(np.count_nonzero(unique)))
        self.contents.of_frame[self.frames(gfns)] = found

    def written(self, gfns: NDArray[np.int64]) -> None:
        """Give pages that were written again contents like no other."""
        self.contents.of_frame[self.frames(gfns)] = self.contents.fresh(int(gfns.size))

    def kernel(self, gfns: NDArray[np.int64]) -> None:
        """Give kernel pages their contents: some of the kernel's image and files are the family's."""
        share, _ = self._draw(gfns)
        found = np.where(share < self._kernel, self.contents.common(self._family + ".kernel", gfns), 0)
        own = share >= self._kernel
        found[own] = self.contents.fresh(int(np.count_nonzero(own)))
        self.contents.of_frame[self.frames(gfns)] = found

    def put(self, gfns: NDArray[np.int64], held: NDArray[np.int32]) -> None:
        """Note that resident, private ``gfns`` were overwritten with ``held``."""
        self.contents.of_frame[self.frames(gfns)] = held

    def copied(self, old: NDArray[np.int64], new: NDArray[np.int64]) -> None:
        """Note that the guest copied its pages ``old`` to ``new``, all resident."""
        self.contents.copy(self.frames(old), self.frames(new))

    def zeroed(self, gfns: NDArray[np.int64]) -> None:
        """Note that the guest zeroed its pages."""
        self.contents.of_frame[self.frames(gfns)] = ZERO

    def of(self, gfns: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return int32[n]: what pages hold; those that have no frame read as zeros."""
        frames = self.frames(gfns)
        return np.where(frames >= 0, self.contents.of_frame[frames], ZERO).astype(np.int32)

    def _draw(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return for each number a share, uniform in [0, 1), and a number below 2^31: equal ones for equal numbers."""
        x = numbers.astype(np.uint64) ^ self._key
        with np.errstate(over="ignore"):
            x = (x ^ (x >> _SHIFTS[0])) * np.uint64(0xFF51AFD7ED558CCD)
            x = (x ^ (x >> _SHIFTS[1])) * np.uint64(0xC4CEB9FE1A85EC53)
        x ^= x >> _SHIFTS[2]
        return (x >> np.uint64(11)).astype(np.float64) / 2.0**53, (x & np.uint64(0x7FFFFFFF)).astype(np.int64)
