"""What a drill does to a local region: one document a region in the state folder, which others read and obey.

The region's front to AWS (`aws_front`) honours `cuts`, the node agent `is_killed`, the emulated AWS `is_cut_off`. A file outlives
whoever wrote it, and whoever reads it too: a front that is started again goes on refusing what it refused. `flotilla up` of a
region, and `flotilla down`, end its faults.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

import msgspec

from infra.embedded import state as files
from infra.embedded.state import State


class Mode(StrEnum):
    """How something cannot be reached."""

    RESET = "reset"
    """Connections are reset at once, those that stand too: a host that is there and takes none."""
    BLACK_HOLE = "black_hole"
    """Bytes go nowhere and nobody says so; what was sent arrives once it is healed, as TCP sends again."""


class Cut(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a region cannot reach of AWS. Empty names mean every region, every service."""

    region: str = ""
    """The region that a request is signed for: its own or another."""
    service: str = ""
    """By the name that requests are signed with, such as `dynamodb` or `s3`."""
    mode: Mode = Mode.RESET

    def covers(self, region: str, service: str) -> bool:
        """Whether a request for `service` in `region` fails. One whose region is not known yet fails only where all do.

        >>> Cut(region="us-east-2").covers("us-east-2", "s3"), Cut(region="us-east-2").covers("", "")
        (True, False)
        """
        return self.region in ("", region) and self.service in ("", service)


class RegionFaults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that is wrong with a region on purpose."""

    cuts: tuple[Cut, ...] = ()
    is_killed: bool = False
    """Every process of it gets SIGKILL, and none is started: the region has no power. Its volumes stay."""
    is_cut_off: bool = False
    """Nothing passes between it and other regions within AWS: neither tables nor buckets replicate until it is healed."""


def path_of(state: State, region: str) -> Path:
    """Where the region's faults lie; no file means none."""
    return state.faults / f"{region}.json"


def read(path: Path) -> RegionFaults:
    """The faults at `path`.

    Raises:
        UserError: the file cannot be read.
    """
    return files.read(path, RegionFaults) or RegionFaults()


def plant(state: State, region: str, faults: RegionFaults) -> None:
    """Makes these the region's faults; those before are over."""
    state.faults.mkdir(mode=0o700, exist_ok=True)
    files.write_json(path_of(state, region), faults)


def heal(state: State, regions: Iterable[str]) -> None:
    """Ends every fault of the regions."""
    for region in regions:
        path_of(state, region).unlink(missing_ok=True)


def heal_all(state: State) -> None:
    """Ends every fault."""
    heal(state, [path.stem for path in state.faults.glob("*.json")])


def partition(state: State, region: str, others: Iterable[str]) -> None:
    """`region` and the `others` go on, and nothing passes between them: neither calls to each other's AWS, nor replication."""
    others = list(others)
    plant(state, region, RegionFaults(cuts=tuple(Cut(region=other) for other in others), is_cut_off=True))
    for other in others:
        plant(state, other, RegionFaults(cuts=(Cut(region=region),)))


def is_any_cut_off(folder: Path) -> bool:
    """Whether replication must wait, by the fault files in `folder`.

    Raises:
        UserError: a file cannot be read.
    """
    return any(read(path).is_cut_off for path in folder.glob("*.json"))


def killed(state: State) -> frozenset[str]:
    """The regions without power.

    Raises:
        UserError: a file cannot be read.
    """
    return frozenset(path.stem for path in state.faults.glob("*.json") if read(path).is_killed)
