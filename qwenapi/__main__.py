"""`python -m qwenapi`: runs the command line; guarded, as spawned engines import it again."""

import sys

if __name__ == "__main__":
    from qwenapi.cli import main

    sys.exit(main())
