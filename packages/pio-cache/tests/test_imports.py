"""Neither torch nor NumPy comes along."""

from __future__ import annotations

import subprocess
import sys


def test_import_stays_light():
    """Importing the package imports nothing beyond the contracts and the standard library."""
    code = "import sys, inference_pio.cache; print(*{'torch', 'numpy', 'msgspec'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
