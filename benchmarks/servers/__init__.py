"""Servers on this machine that are slow, lie, fail or stop when told to. The tests use them too."""
