"""What a caller is told of an engine's refusal or failure: messages of the wire to ApiErrors."""

from qwenapi.errors import (
    ApiError,
    ContextLengthExceeded,
    EngineCrash,
    EngineFailed,
    EngineUnavailable,
    InternalError,
    ModelChanged,
    QueueFull,
    QueueTimeout,
    ServerShutdown,
)
from workers.wire.protocol import Failed, Rejected


def refusal(rejected: Rejected) -> ApiError:
    """Return what a caller is told of an engine's refusal."""
    if rejected.reason in ("queue_full", "overloaded"):
        return QueueFull(rejected.queue_size, rejected.max_queue_size, rejected.retry_after)
    if rejected.reason == "too_long":
        return ContextLengthExceeded()
    if rejected.reason == "draining":
        return EngineUnavailable(retry_after=rejected.retry_after)
    return InternalError()


def failure(failed: Failed) -> ApiError:
    """Return what a caller is told of a request that failed after it was accepted."""
    if failed.reason == "queue_timeout":
        return QueueTimeout(retry_after=5)
    if failed.reason == "server_shutdown":
        return ServerShutdown(retry_after=5)
    if failed.reason == "engine_crash":
        return EngineCrash()
    if failed.reason == "engine_unavailable":
        return EngineUnavailable(retry_after=5)
    if failed.reason == "model_changed":
        return ModelChanged(retry_after=1)
    return EngineFailed()
