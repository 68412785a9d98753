"""``python -m inference_pio.cli``: the same as ``pio``."""

import sys

from inference_pio.cli import main

if __name__ == "__main__":
    sys.exit(main())
