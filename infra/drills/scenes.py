"""Every scene, by the name of its drill."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from infra.drills.az_loss import ZoneLoss
from infra.drills.cache_loss import CacheLoss
from infra.drills.scene import Scene
from infra.drills.slow_region import SlowRegion

SCENES: Mapping[str, Callable[[], Scene]] = {each.name: each for each in (CacheLoss, SlowRegion, ZoneLoss)}
