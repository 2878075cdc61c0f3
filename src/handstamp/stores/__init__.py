"""Stores: everything that knows SQL, behind one protocol."""
