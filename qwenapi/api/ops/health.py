"""Bodies of `/health`, each as its profile's document prints it. Pure."""

from collections.abc import Sequence
from typing import Any

from qwenapi.engines.link import DeviceMemory
from qwenapi.settings.profile import Profile
from workers.wire.protocol import ModelCard

GB = 1024**3


def loading_body(profile: Profile) -> dict[str, Any]:
    """Return what is said while no engine is ready."""
    if profile.health == "healthy":
        return {"detail": profile.loading_message}
    if profile.health == "gpu":
        return {"error": profile.loading_message}
    return {"status": "loading"}


def health_body(
    profile: Profile,
    card: ModelCard | None,
    devices: Sequence[DeviceMemory],
    rate_limit: str,
) -> dict[str, Any]:
    """Return what is said while an engine is ready; memory of all engines' devices together."""
    if profile.health == "healthy":
        return {"status": "healthy"}
    if profile.health == "plain":
        return {"status": "ok"}
    max_running = profile.settings.limits_max_running or (card.max_num_seqs if card else 0)
    allocated = sum(device.allocated for device in devices)
    return {
        "status": "ok",
        "gpu": {
            "allocated_gb": _gb(allocated),
            "reserved_gb": _gb(sum(device.reserved for device in devices)),
            "free_gb": _gb(sum(device.total for device in devices) - allocated),
        },
        "limits": {
            "max_concurrent_requests": max_running,
            "max_queue_size": profile.settings.limits_max_waiting,
            "rate_limit": rate_limit,
        },
    }


def _gb(num_bytes: int) -> float:
    return round(num_bytes / GB, 2)
