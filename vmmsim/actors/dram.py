"""DRAM faults of one host: when they strike, which frames they break, and when that is noticed. No clock here.

Faults of a device are a Poisson process, by mode (bit, word, column, row, bank, several banks, several ranks) and
permanent or transient, at the rates of a field study (FIT, faults in 10^9 device-hours). Hosts differ: a host's rates
are multiplied by one factor, log-normal with a mean of 1, so that the average over hosts is the study's whatever the
spread. ``geometry`` says which frames share a bit, row, column or bank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, Protocol, get_args

import attrs
import numpy as np

from vmmsim import rates
from vmmsim.actors.dram_geometry import FaultMode, Frames, Geometry

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODES: Final[tuple[FaultMode, ...]] = get_args(FaultMode)
NS_PER_HOUR: Final = 3600 * 10**9
_WIDTHS: Final = {"x4": 4, "x8": 8, "x16": 16}


class Dimms(Protocol):
    """What is read of a description of memory modules."""

    @property
    def count(self) -> int: ...
    @property
    def ranks(self) -> int: ...
    @property
    def width(self) -> str: ...


class Faults(Protocol):
    """What is read of a description of faults."""

    @property
    def rates(self) -> str: ...
    @property
    def spread(self) -> float: ...
    @property
    def acceleration(self) -> float: ...


def _number(table: str, name: str) -> float:
    return float(rates.number(f"dram.{table}.{name}"))


def fit(table: str) -> dict[tuple[FaultMode, bool], float]:
    """Return faults in 10^9 device-hours by (mode, permanent)."""
    return {
        (mode, permanent): _number(table, f"{mode}_{'permanent' if permanent else 'transient'}")
        for mode in MODES
        for permanent in (False, True)
    }


def devices_per_rank(width: str) -> int:
    """Return how many devices make a codeword of 72 bits: 18 x4, 9 x8 or 5 x16."""
    return -(-int(_number("geometry", "codeword_bits")) // _WIDTHS[width])


def devices(dimms: Dimms) -> int:
    """Return how many DRAM devices the modules have."""
    return dimms.count * dimms.ranks * devices_per_rank(dimms.width)


def expected_faults(dimms: Dimms, table: str, *, hours: float, permanent: bool | None = True) -> float:
    """Return the mean number of faults of a host in ``hours``; permanent ones, transient ones or (None) both."""
    total = sum(value for (_, lasts), value in fit(table).items() if permanent in (None, lasts))
    return devices(dimms) * total * hours * 1e-9


def is_correctable(mode: FaultMode, width: str) -> bool:
    """Tell whether error correction corrects a fault: chipkill on x4 devices, single-bit correction on wider ones.

    A fault in a second device of the same codeword would not be correctable either. That is left out: what a first
    fault broke is retired when it is discovered.
    """
    return _number("chipkill" if width == "x4" else "sec-ded", mode) == 1


@attrs.frozen(kw_only=True)
class DramFault:
    """One fault of one DRAM device."""

    t_ns: int
    """When it strikes."""
    mode: FaultMode
    """What part of the device fails."""
    permanent: bool
    """It stays, so that its frames must be given up; a transient fault is gone when it has been corrected."""
    correctable: bool
    """Error correction returns the right data; otherwise the contents of what is hit are lost."""
    discovered_ns: int
    """When hardware first reads what is broken."""
    how: Literal["scrub", "access"]
    """What read it: the patrol scrubber, or the host."""
    device: int
    """Number of the device on the host: channel after channel, rank after rank."""
    frames: Frames
    """The frames of which some line is hit."""


def geometry(host_pages: int, dimms: Dimms | None = None) -> Geometry:
    """Return how the pages of a host lie in its modules; without ``dimms``, one single-rank module to a channel."""
    most = int(_number("geometry", "channels"))
    count = dimms.count if dimms else most
    # As many channels as the modules fill evenly.
    channels = next(channels for channels in range(min(most, count), 0, -1) if count % channels == 0)
    return Geometry(
        host_pages=host_pages,
        channels=channels,
        modules=count // channels,
        ranks=dimms.ranks if dimms else 1,
        banks=int(_number("geometry", "banks")),
        row_bytes=int(_number("geometry", "row_bytes")),
    )


def draw_faults(
    dimms: Dimms,
    faults: Faults,
    *,
    host_pages: int,
    until_ns: int,
    random: np.random.Generator,
    reread_ns: float | None = None,
) -> list[DramFault]:
    """Return all faults of one host in [0, until_ns), in order of time; some may be discovered later than that.

    host_pages  frames of the host
    random      the host's own stream; equal streams give equal faults
    reread_ns   mean time (exponential) until the host itself reads what has become broken; None: the scrubber is first
    """
    place = geometry(host_pages, dimms)
    study = fit(faults.rates)
    kinds = list(study)
    # exp(sigma z - sigma^2 / 2) has a mean of 1 for standard normal z.
    factor = float(np.exp(faults.spread * random.standard_normal() - faults.spread**2 / 2)) * faults.acceleration
    phase = float(random.random())
    mean = expected_faults(dimms, faults.rates, hours=until_ns / NS_PER_HOUR, permanent=None) * factor
    times = np.sort(random.integers(0, max(until_ns, 1), random.poisson(mean)))
    shares = np.cumsum(list(study.values()))
    which = np.searchsorted(shares, random.random(times.size) * shares[-1], side="right")
    hfns = random.integers(0, place.pages, times.size)
    channels = random.integers(0, place.channels, times.size)
    positions = random.integers(0, devices_per_rank(dimms.width), times.size)
    waits = random.standard_exponential(times.size) * (np.inf if reread_ns is None else reread_ns)
    found = []
    for t_ns, kind, hfn, channel, position, wait in zip(
        times.tolist(),
        which.tolist(),
        hfns.tolist(),
        channels.tolist(),
        positions.tolist(),
        waits.tolist(),
        strict=True,
    ):
        mode, permanent = kinds[kind]
        frames = place.frames(mode, hfn)
        scrub = scrub_wait_ns(frames, t_ns, pages=place.host_pages, phase=phase)
        rank = channel * place.modules * place.ranks + place.rank_of(hfn)
        found.append(
            DramFault(
                t_ns=t_ns,
                mode=mode,
                permanent=permanent,
                correctable=is_correctable(mode, dimms.width),
                discovered_ns=t_ns + int(min(wait, scrub)),
                how="access" if wait < scrub else "scrub",
                device=rank * devices_per_rank(dimms.width) + position,
                frames=frames,
            )
        )
    return found


def scrub_interval_ns() -> int:
    """Return how long the patrol scrubber takes to read all of memory once."""
    return int(_number("geometry", "scrub_interval_s") * 10**9)


def scrub_wait_ns(frames: Frames, t_ns: int, *, pages: int, phase: float) -> int:
    """Return how long after ``t_ns`` the scrubber comes to the first of ``frames``.

    It reads the host's ``pages`` in order, evenly, again and again; at time 0 it is at page ``phase`` * ``pages``.
    """
    interval = scrub_interval_ns()
    at = (t_ns / interval + phase) % 1.0 * pages
    ahead = frames.next_from(at)
    distance = ahead - at if ahead is not None else frames.first + pages - at
    return int(distance / pages * interval)


def total_by_mode(faults: list[DramFault], *, permanent: bool = True) -> NDArray[np.int64]:
    """Return int64[modes]: how many of ``faults`` there are of each of ``MODES``."""
    return np.array([sum(each.mode == mode and each.permanent == permanent for each in faults) for mode in MODES])
