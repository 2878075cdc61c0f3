"""Stores: all SQL over one table of sessions, behind the contract in ``base.py``."""
