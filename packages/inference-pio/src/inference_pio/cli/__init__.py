"""The ``pio`` command. Other distributions add commands to it through the entry-point group ``pio.commands``."""

from inference_pio.cli._main import main, script

__all__ = ["main", "script"]
