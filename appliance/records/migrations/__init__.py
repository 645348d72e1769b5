"""Alembic's steps from an empty file to `tables.py`. A package, so that an installed wheel holds them."""
