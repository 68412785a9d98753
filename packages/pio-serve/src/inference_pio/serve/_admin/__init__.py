"""Running a server over a unix socket of its own."""
