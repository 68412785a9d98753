"""The version of the contracts."""

API_VERSION = "0.1"
"""Version of the plugin contract, ``major.minor``. The core supports the current minor and the one before it."""
