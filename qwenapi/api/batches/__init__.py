"""Files and batches as OpenAI has them: requests in a file, answered when there is time."""

from qwenapi.api.batches.views import blueprint

__all__ = ["blueprint"]
