"""Errors of the conversation store, as what the caller of the current request is told."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qwenapi.conversations import (
    ConversationError,
    ConversationFull,
    ConversationNotFound,
    ItemTooLarge,
    StoreFull,
)
from qwenapi.errors import ApiError, BadRequest, EngineUnavailable, InsufficientStorage


@contextmanager
def storage_errors(missing: Callable[[], ApiError], *, param: str) -> Iterator[None]:
    """Raise the store's errors as an interface's: `missing` for what is not there, others in our
    own words; `param` is the field that holds what is kept.
    """
    try:
        yield
    except ConversationNotFound as error:
        raise missing() from error
    except (ItemTooLarge, ConversationFull) as error:
        raise BadRequest(str(error), param=param) from error
    except StoreFull as error:
        raise InsufficientStorage(str(error)) from error
    except ConversationError as error:
        raise EngineUnavailable(str(error), retry_after=1) from error
