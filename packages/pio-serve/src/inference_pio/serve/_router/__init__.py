"""Several servers on one machine behind one address."""
