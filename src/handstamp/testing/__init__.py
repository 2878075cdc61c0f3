"""Helpers for tests: a real PostgreSQL server that lives as long as they do."""
