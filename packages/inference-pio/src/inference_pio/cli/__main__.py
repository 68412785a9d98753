"""``python -m inference_pio.cli``: the same as ``pio``."""

from inference_pio.cli import script

if __name__ == "__main__":
    script()
