"""Rows into a file: CSV for spreadsheets, Parquet for dataframes; which one, the file's name says.

Parquet needs pyarrow, an extra that no server has (`pip install 'tierstore[parquet]'`): files are made where they are
asked for. Writes the whole file or none.
"""

from __future__ import annotations

import csv
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tierstore.errors import ConfigError


def save(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write rows to PATH.csv or PATH.parquet. Raises ConfigError (another ending, no pyarrow, disk)."""
    if path.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"{path}: the name ends in .csv or .parquet, which says what is written")
    unfinished = path.with_name(path.name + ".new")
    try:
        (_parquet if path.suffix == ".parquet" else _csv)(unfinished, rows, columns)
        unfinished.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error}") from None
    finally:
        unfinished.unlink(missing_ok=True)


def _csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows([row[name] for name in columns] for row in rows)


def _parquet(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ConfigError(
            "Parquet needs pyarrow: pip install 'tierstore[parquet]', or take a name that ends in .csv"
        ) from None
    table = arrow.table({name: [row[name] for row in rows] for name in columns})
    parquet.write_table(table, path, compression="zstd")
