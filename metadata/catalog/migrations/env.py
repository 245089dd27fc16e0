"""Alembic asks for this file when its own command line is used; tierstore upgrades from metadata.catalog.migrate."""

raise SystemExit("run `tierstore metadata serve`: it upgrades the catalog at start")
