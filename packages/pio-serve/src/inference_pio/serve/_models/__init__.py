"""The models of a server: loaded, leased, unloaded."""
