"""Writes h5parms that have the layout of another one: what merging along time and along frequency share.

DP3 is particular about an h5parm: types, null-terminated strings, attributes and the order of axes stay those of the
file they come from.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from chunkcal.errors import UserError
from chunkcal.solutions.h5parm import FREQUENCY_TOLERANCE_HZ, axes_of, interval_range, one_line, text_of

TIME_TOLERANCE_S = 1e-2  # how far off its place DP3 lets a time slot be
_SPARE_BYTES = 64 << 10  # what HDF5 may need besides
_TOLERANCES = {"freq": ("frequencies", FREQUENCY_TOLERANCE_HZ, "Hz"), "time": ("times", TIME_TOLERANCE_S, "MJD s")}


@contextmanager
def written(out: str | os.PathLike, n_bytes: int) -> Iterator[Path]:
    """Give a temporary path beside `out`, which becomes `out` when the block ends well and is removed otherwise.

    Raises
    ------
    UserError
        The disk has no room for `n_bytes` (checked beforehand, because HDF5 1.14 crashes with SIGSEGV when it closes
        a file on a full disk), or `out` cannot be written.
    """
    need = n_bytes + _SPARE_BYTES
    folder = Path(out).absolute().parent
    free = shutil.disk_usage(folder).free if folder.is_dir() else need
    if free < need:
        raise UserError(
            f"{out} cannot be written: it may take {need / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free in {folder};"
            " make room"
        )
    temporary = Path(f"{out}.tmp-{uuid.uuid4().hex}")
    try:
        yield temporary
        os.replace(temporary, out)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({one_line(error)}); check the folder and its free space") from error
    finally:
        temporary.unlink(missing_ok=True)


def tables_of(solset: h5py.Group) -> list[h5py.Group]:
    """List the solution tables of a solution set."""
    return [item for item in solset.values() if isinstance(item, h5py.Group)]


# ---- creating -------------------------------------------------------------------------------------------


def create_like(source: h5py.Group, target: h5py.Group, along: str, length: int, note: str) -> None:
    """Create everything that `source` has, with `length` values along one axis.

    `val`, `weight` and the axis itself stay empty; all else is copied.

    Parameters
    ----------
    along : {"time", "freq"}
        The axis that gets another length.
    note : str
        Line to add to every HISTORY attribute.
    """
    _copy_attributes(source, target, note)
    axes = axes_of(source) if "val" in source else []
    for name, item in source.items():
        if isinstance(item, h5py.Group):
            create_like(item, target.create_group(name), along, length, note)
            continue
        own_axes = {along: [along], "val": axes, "weight": axes}.get(name, []) if axes else []
        shape = tuple(length if axis == along else n for axis, n in zip(own_axes, item.shape, strict=False))
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_obj_track_times(False)  # the same sources shall give the same bytes
        # DP3 reads strings as null-terminated. In h5py's own type, padded, each would lose its last character.
        kind = item.id.get_type()
        if item.dtype.kind == "O":
            raise UserError(f"{item.file.filename}: {item.name} is of variable length; give an h5parm that DP3 wrote")
        space = h5py.h5s.create_simple(shape or item.shape)
        created = h5py.h5d.create(target.id, name.encode(), kind, space, properties)
        if not own_axes:
            raw = np.empty(item.shape, f"V{kind.get_size()}")
            item.id.read(h5py.h5s.ALL, h5py.h5s.ALL, raw, kind)
            created.write(h5py.h5s.ALL, h5py.h5s.ALL, raw, kind)
        _copy_attributes(item, h5py.Dataset(created), note)


# What DP3 writes in front of its history, and the keys that are one chunk's own.
_WALL_CLOCK = re.compile(r"^\d\d-\d\d-\d{4} \d\d:\d\d:\d\d: ")
_OF_ONE_CHUNK = re.compile(r"^(numthreads|msin\.(starttime|starttimeslot|endtime|ntimes))=.*\n?", re.MULTILINE)


def _copy_attributes(source: h5py.HLObject, target: h5py.HLObject, note: str) -> None:
    for name, value in source.attrs.items():
        if name.startswith("HISTORY"):
            text = _OF_ONE_CHUNK.sub("", _WALL_CLOCK.sub("", text_of(value)))
            value = np.bytes_(f"{text.rstrip()}\n{note}\n".encode())
        target.attrs[name] = value


# ---- copying the parts' solutions -----------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """One of the h5parms that are merged, and how to refuse it.

    Attributes
    ----------
    siblings : str
        What the others are, for instance "chunks".
    remedy : str
        What to do about one that does not fit.
    """

    path: str | os.PathLike
    siblings: str
    remedy: str

    def refusal(self, reason: str) -> UserError:
        """Make the error that says why this h5parm does not fit the others."""
        return UserError(f"h5parm {self.path} does not fit the other {self.siblings}: {reason}; {self.remedy}")


@dataclass(frozen=True)
class _Table:
    """What a solution table of each part must have, in the reference's order."""

    title: object
    axes: list[str]
    values: Mapping[str, np.ndarray]  # of the axes that have values of their own, which TEC screens' have not


@dataclass(frozen=True)
class Layout:
    """What each part must have, read once of the reference.

    Attributes
    ----------
    members : mapping of str to list of str
        By path, what the file and its solution sets hold.
    rows : mapping of str to structured array
        By path, the tables of antennas and directions.
    tables : mapping of str to _Table
        By path, the solution tables.
    """

    members: Mapping[str, list[str]]
    rows: Mapping[str, np.ndarray]
    tables: Mapping[str, _Table]

    @classmethod
    def of(cls, reference: h5py.File) -> Layout:
        """Read it."""
        solsets = list(reference.values())
        rows = [solset[name] for solset in solsets for name in ("antenna", "source") if name in solset]
        tables = {}
        for group in (group for solset in solsets for group in tables_of(solset)):
            axes = axes_of(group)
            values = {axis: group[axis][:] for axis in axes if axis in group}
            tables[group.name] = _Table(group.attrs["TITLE"], axes, values)
        members = {group.name: list(group) for group in (reference, *solsets)}
        return cls(members, {table.name: table[:] for table in rows}, tables)


def copy_solutions(part: h5py.File, member: Member, layout: Layout, merged: h5py.File, along: str, first: int) -> None:
    """Write all solutions of a part into the merged file, from index `first` of axis `along` on.

    Antennas, directions and polarizations are put into the reference's order by their names.

    Raises
    ------
    UserError
        The part has other solution sets, tables, axes, members of an axis or places than the reference.
    """
    for name, members in layout.members.items():
        if set(part[name]) != set(members):
            raise member.refusal(f"{name} has {', '.join(part[name])}, not {', '.join(members)}")
    for name, rows in layout.rows.items():
        _refuse_other_rows(part[name], rows, member)
    for path, table in layout.tables.items():
        own = part[path]
        axes, own_axes = table.axes, axes_of(own)
        if sorted(axes) != sorted(own_axes) or own.attrs["TITLE"] != table.title:
            raise member.refusal(f"{path} has another kind or other axes ({','.join(own_axes)})")
        picks = [_pick(own, axis, table.values.get(axis), member) if axis != along else None for axis in axes]
        target = merged[path]
        for name in ("val", "weight"):
            values = _read(own[name], member).transpose([own_axes.index(axis) for axis in axes])
            for i, pick in enumerate(picks):
                values = values if pick is None else values.take(pick, axis=i)
            place = interval_range(axes, first, values.shape[axes.index(along)], along)
            target[name][place] = values


def _read(dataset: h5py.Dataset, member: Member) -> np.ndarray:
    try:
        return dataset[()]
    except OSError as error:
        raise member.refusal(f"{dataset.name} cannot be read ({one_line(error)})") from error


def _pick(own: h5py.Group, axis: str, wanted: np.ndarray | None, member: Member) -> np.ndarray | None:
    """Indices that put an axis of a part into the reference's order; None if it is so already."""
    if wanted is None:  # TEC screens have axes without values of their own
        return None
    has = own[axis][:]
    if axis in _TOLERANCES:
        _refuse_other_values(own, axis, wanted, has, member)
        return None
    if np.array_equal(wanted, has):
        return None
    place = {value: i for i, value in enumerate(has.tolist())}
    odd = sorted(text_of(value) for value in place.keys() ^ set(wanted.tolist()))
    if odd or len(place) != len(has):
        raise member.refusal(f"{own.name} has another axis {axis} ({', '.join(odd) or 'a name occurs twice'})")
    return np.array([place[value] for value in wanted.tolist()])


def _refuse_other_values(own: h5py.Group, axis: str, wanted: np.ndarray, has: np.ndarray, member: Member) -> None:
    what, tolerance, unit = _TOLERANCES[axis]
    if wanted.shape != has.shape:
        raise member.refusal(f"{own.name} has {len(has)} {what}, not {len(wanted)}")
    odd = ~(np.abs(wanted - has) <= tolerance)
    if odd.any():
        k = int(np.argmax(odd))
        raise member.refusal(f"{own.name} has other {what} ({has[k]:.3f} {unit}, not {wanted[k]:.3f})")


def _refuse_other_rows(own: h5py.Dataset, reference: np.ndarray, member: Member) -> None:
    """Refuse a table of antennas or directions whose names or places differ; the order of rows is free."""
    rows = own[:]
    if np.array_equal(rows, reference):
        return
    (value,) = set(reference.dtype.names) - {"name"}
    tolerance = 0.1 if value == "position" else 1e-6  # m, rad
    wanted, has = ({row["name"]: row[value].astype(float) for row in table} for table in (reference, rows))
    odd = wanted.keys() ^ has.keys()
    odd |= {name for name in wanted.keys() & has.keys() if np.abs(wanted[name] - has[name]).max() > tolerance}
    if odd:
        raise member.refusal(f"{own.name} differs in {', '.join(sorted(map(text_of, odd)))}")
