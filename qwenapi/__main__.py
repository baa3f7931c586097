"""`python -m qwenapi`. Guarded and light: every spawned engine imports this module again."""

import sys

if __name__ == "__main__":
    from qwenapi.cli import main

    sys.exit(main())
