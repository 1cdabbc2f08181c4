"""Numbers of a LeRobot dataset: columns of parquet files, by pyarrow, which is imported on first use.

Every fault is a ValueError of one line that begins with `where`, whatever pyarrow made of the damage.
"""

from contextlib import contextmanager

import numpy as np

from support.data.video import INSTALL


def arrow():
    """The package pyarrow, with pyarrow.parquet. ImportError, one line, without it."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(INSTALL) from error
    return pyarrow


@contextmanager
def damage(where, what):
    """Whatever libraries make of bytes that no writer of the format wrote becomes one line; lines of ours pass."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(where):
            raise
        reason = " ".join((str(error) if isinstance(error, UnicodeError) else repr(error)).split())[:200]
        raise ValueError(f"{where}: {what} ({reason}); download it again") from error


def read_table(path, columns, where, group=None):
    """Columns (None: all) of a parquet file, or of one row group of it, as a pyarrow table."""
    with damage(where, f"{path} cannot be read"), arrow().parquet.ParquetFile(path) as file:
        absent = [key for key in columns or () if key not in file.schema_arrow.names]
        if absent:
            raise ValueError(f"{where}: {path} has no column '{absent[0]}', which meta/ promises; download it again")
        columns = columns and list(columns)
        return file.read(columns) if group is None else file.read_row_group(group, columns)


def row_groups(path, where):
    """Number of the first row of each row group of a parquet file, and the number of rows: list[int]."""
    with damage(where, f"{path} cannot be read"), arrow().parquet.ParquetFile(path) as file:
        starts = [0]
        for group in range(file.num_row_groups):
            starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
        return starts


def read_columns(path, sizes, where, group=None):
    """Vector features of a data file, or of one row group: {key: dimension} -> {key: (rows, dimension) float32},
    read-only. Columns are lists of any kind, nested or not, or, for dimension 1, plain numbers."""
    table, arrays = read_table(path, sizes, where, group), {}
    for key, size in sizes.items():
        with damage(where, f"{path}, '{key}' holds no numbers"):
            flat = table[key].combine_chunks()
            while arrow().types.is_nested(flat.type):
                flat = flat.flatten()
            values = np.array(flat.to_numpy(zero_copy_only=False), dtype=np.float32)
        if values.size != table.num_rows * size:
            raise ValueError(f"{where}: {path}, '{key}' has {values.size} values in {table.num_rows} rows, "
                             f"meta/info.json says {size} each")
        arrays[key] = values.reshape(-1, size)
        arrays[key].flags.writeable = False  # it is cached: who changes it must copy it
    return arrays
