"""Numbers of a LeRobot dataset: columns of parquet files, by pyarrow, which is imported on first use.

Every fault is a ValueError of one line that begins with `where`, whatever pyarrow made of the damage."""

import os
import re
from contextlib import contextmanager
from itertools import accumulate

import numpy as np

from support.data.video import INSTALL
from support.files import check_rounding, damage, must

MOST = 1 << 27   # values of a column in one row group: 512 MiB as float32
EXACT = ("timestamp", "frame_index", "episode_index", "task_index")   # float64: seconds since 1970, large numbers


def arrow():
    """The package pyarrow, with pyarrow.parquet. ImportError, one line, without it."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(INSTALL) from error
    return pyarrow


@contextmanager
def opened(path, where):
    """A parquet file -> pyarrow's ParquetFile, of an open file: it takes no path that is not UTF-8."""
    must(os.path.isfile(path), f"{where}: {path} is missing, or a pipe; download it again")
    with damage(where, f"{path} cannot be read", path):
        with open(path, "rb") as raw, arrow().parquet.ParquetFile(raw) as file:
            yield file


def read_table(path, columns, where, group=None, also=()):
    """Columns (None: all), and of `also` what is there, of a parquet file or one row group of it -> a pyarrow table."""
    with opened(path, where) as file:
        names = file.schema_arrow.names
        for key in columns or ():
            must(key in names, f"{where}: {path} has no column '{key}', which meta/ promises; download it again")
        columns = names if columns is None else [*columns, *(key for key in also if key in {*names} - {*columns})]
        for key in columns:
            must(names.count(key) == 1, f"{where}: {path} has {names.count(key)} columns '{key}'; download it again")
        groups = range(file.num_row_groups) if group is None else [group]
        for part in map(file.metadata.row_group, groups):
            most = max((part.column(i).num_values for i in range(part.num_columns)), default=0)
            must(most <= MOST, f"{where}: {path} has {most:,} values in a column of one row group, at most {MOST:,} "
                 "are read; download it again")   # a few bytes unpack to it
        return file.read(columns) if group is None else file.read_row_group(group, columns)


def first_numbers(path, where, n):
    """Of a data file, the first n rows of all columns of numbers that do not count rows -> {name: rows}."""
    with opened(path, where) as file:
        names = [field.name for field in file.schema_arrow if not re.search("struct|binary|string", str(field.type))
                 and field.name not in (*EXACT, "index") and not field.name.startswith("next.")]
        batch = next(file.iter_batches(n, columns=names), None) if names else None
        return batch.to_pydict() if batch else {}


def row_groups(path, where):
    """Number of the first row of each row group of a parquet file, and the number of rows: list[int]."""
    with opened(path, where) as file:
        groups = map(file.metadata.row_group, range(file.num_row_groups))
        return list(accumulate((group.num_rows for group in groups), initial=0))


def read_columns(path, sizes, where, group=None, also=()):
    """Vector features of a data file, or of one row group: {key: dimension} -> {key: (rows, dimension) float32, or
    float64 of EXACT}, read-only. Columns are lists of any kind, nested or not, or, for dimension 1, plain numbers.
    A null, or what is too large for float32, is not finite. also: columns of one number, read where they are."""
    table, arrays, dtypes = read_table(path, sizes, where, group, also), {}, arrow().types
    for key in table.column_names:
        size = sizes.get(key, 1)
        here, flat, each = f"{where}: {path}, '{key}'", table[key].combine_chunks(), 1   # each: values of a row
        with damage(where, f"{path}, '{key}' holds no numbers"):
            while dtypes.is_list(flat.type) or dtypes.is_large_list(flat.type) or dtypes.is_fixed_size_list(flat.type):
                lengths = flat.value_lengths().fill_null(0).to_numpy()
                for row in np.flatnonzero(lengths != (usual := np.sort(lengths)[len(lengths) // 2])):   # 0: null
                    raise ValueError(f"{here}, row {row // each} of row group {group} has a list of {lengths[row]}, "
                                     f"others of {usual}; download it again")
                flat, each = flat.flatten(), each * int(usual)
            must(dtypes.is_integer(flat.type) or dtypes.is_floating(flat.type) or dtypes.is_boolean(flat.type),
                 f"{here} is of type {flat.type}, expected real numbers; " + (
                     "name another in a --robot file" if key not in EXACT else "write it again as numbers, or read the "
                     "rows with --timestamps index" if key == "timestamp" else "write it again as whole numbers"))
            must(each == size, f"{here} has {each} values in a row, meta/info.json says {size}; download it again")
            flat = flat.cast("float64", safe=False) if flat.null_count else flat
            with np.errstate(over="ignore"):
                given = flat.to_numpy(zero_copy_only=False)
                values = np.array(given, np.float64 if key in EXACT else np.float32)
        arrays[key] = values.reshape(-1, size)
        if key not in EXACT:
            check_rounding(given, arrays[key], here)
        arrays[key].flags.writeable = False  # it is cached: who changes it must copy it
    return arrays
