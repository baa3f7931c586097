"""Fetch one model by its name and print its folder, as `qwenapi serve` does before it starts.

In a process of its own, since the library reads its variables once.
"""

import sys
from dataclasses import replace

from qwenapi.hub.fetch import with_local_model
from qwenapi.settings.table import Settings
from workers.errors import WorkerError


def main() -> int:
    try:
        model, source = [*sys.argv[1:], "huggingface"][:2]
        settings = replace(Settings(), model=model, model_source=source)
        print(with_local_model(settings, lambda line: print(line, file=sys.stderr)).model)
    except WorkerError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
