"""Supabase Auth's tables, and the tokens that are kept in them."""
