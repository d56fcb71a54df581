"""``chunkcal simulate``: a MeasurementSet of any size whose sky, gains, noise and interference are known.

Three files are made: ``NAME.ms``, ``NAME.skymodel`` (makesourcedb text) and ``NAME.truth.h5``. The truth holds

- ``time`` [time] MJD s UTC, ``slot`` [time] number on the whole grid, ``freq`` [chan] Hz, ``antenna`` [ant] names,
  ``position`` [ant, 3] ITRF m, ``antenna1``, ``antenna2`` [baseline], ``dead`` [ant];
- ``patch`` [patch] names, ``patch_radec`` [patch, 2] J2000 rad;
- ``tec`` [time, ant, patch] TECU, ``amp`` [time, ant, pol], ``phase0`` [ant, pol] rad; the gain that the data have is
  ``amp * exp(i (phase0 + tec_phase * tec / freq))``, which `gain` evaluates, and V_pq = g_p M_pq conj(g_q);
- ``rfi`` [time, baseline, chan] and ``nan`` [time, baseline]: which data were spoilt;
- the attributes ``noise_jy`` (standard deviation of a real part), ``tec_phase``, ``recipe`` and ``settings`` (JSON).

The signal itself is defined in `chunkcal.simulate.signal`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from chunkcal.errors import UserError
from chunkcal.simulate.ms import created
from chunkcal.simulate.settings import TELESCOPES, Simulation
from chunkcal.simulate.signal import TEC_PHASE, Scene, make_scene
from chunkcal.simulate.sky import sky_model_text

BLOCK_BYTES = 32 << 20  # DATA held in memory at a time
RECIPE = "gain[time,ant,freq,pol] = amp * exp(1j * (phase0 + tec_phase * tec / freq)); V_pq = g_p * M_pq * conj(g_q)"


@dataclass(frozen=True)
class SimulationFiles:
    """The files of one simulation."""

    ms: Path
    sky_model: Path
    truth: Path

    @classmethod
    def named(cls, path: str | os.PathLike) -> SimulationFiles:
        """Name the files after ``NAME`` or ``NAME.ms``."""
        path = Path(path)
        name = path.name[:-3] if path.name.lower().endswith(".ms") else path.name
        if name in ("", ".."):
            raise UserError(f"{str(path)!r} is no name for a MeasurementSet; give one like 'demo/night.ms'")
        return cls(*(path.with_name(name + ending) for ending in (".ms", ".skymodel", ".truth.h5")))


def simulate(settings: Simulation, path: str | os.PathLike, overwrite: bool = False) -> SimulationFiles:
    """Make a MeasurementSet, its sky model and its truth.

    They are written in a folder beside `path` and renamed when all are complete; on an error or Ctrl-C nothing
    stays behind, and files that were there before are as they were.

    Parameters
    ----------
    settings : Simulation
    path : path-like
        ``NAME`` or ``NAME.ms``; its folder is made if need be.
    overwrite : bool
        Replace files of the same names.

    Raises
    ------
    UserError
        A setting makes no sense, a file exists, or it cannot be written.
    """
    final = SimulationFiles.named(path)
    _refuse_existing(final, overwrite)
    settings = settings.complete()
    _refuse_full_disk(settings, final.ms.parent)
    scene = make_scene(settings)
    try:
        with _staged(final, overwrite) as staged:
            _write(scene, staged)
    except OSError as error:
        raise UserError(f"cannot write {final.ms}: {error}; choose another place or make room") from error
    return final


def gain(truth_path: str | os.PathLike, patch: int | str = 0) -> np.ndarray:
    """Evaluate the true total gain towards a patch.

    Returns
    -------
    ndarray of complex128, [time, ant, freq, pol]
        Pol is X, Y; dead stations are 0.
    """
    with h5py.File(truth_path) as truth:
        if isinstance(patch, str):
            patch = list(truth["patch"].asstr()).index(patch)
        tec, freq, amp, phase0 = truth["tec"][:, :, patch], truth["freq"][:], truth["amp"][:], truth["phase0"][:]
        ionosphere = np.exp(1j * truth.attrs["tec_phase"] * tec[:, :, None] / freq)
    return ionosphere[..., None] * (amp * np.exp(1j * phase0))[:, :, None, :]


def _paths(names: SimulationFiles) -> tuple[Path, Path, Path]:
    """Return the files in the order of publication: where the MS is, the others are."""
    return names.sky_model, names.truth, names.ms


def _refuse_existing(names: SimulationFiles, overwrite: bool) -> None:
    existing = [str(path) for path in _paths(names) if os.path.lexists(path)]
    if existing and not overwrite:
        raise UserError(f"{', '.join(existing)} exists already; choose another name or allow overwriting (--overwrite)")


def _refuse_full_disk(settings: Simulation, folder: Path) -> None:
    n_rows = len(settings.slots()) * settings.n_baselines
    # A row: DATA, WEIGHT_SPECTRUM and FLAG per channel, some 100 bytes of scalars; and the fixed size of any MS.
    needed = n_rows * (settings.n_channels * 49 + 100) + 10_000_000
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(
            f"the simulation needs {needed / 1e9:.1f} GB, but {existing} has {free / 1e9:.1f} GB free; "
            "make room or choose fewer slots, stations or channels"
        )


@contextlib.contextmanager
def _staged(final: SimulationFiles, overwrite: bool) -> Iterator[SimulationFiles]:
    """Give names in a temporary sibling folder; move what was made there into place, all or nothing."""
    folder = final.ms.with_name(f"{final.ms.stem}.tmp-{uuid.uuid4().hex}")
    old = folder / "old"
    old.mkdir(parents=True)
    staged = SimulationFiles(*(folder / getattr(final, field.name).name for field in dataclasses.fields(final)))
    try:
        yield staged
        _refuse_existing(final, overwrite)  # again: writing takes a while
        try:
            for source, target in zip(_paths(staged), _paths(final), strict=True):
                if os.path.lexists(target):
                    os.rename(target, old / target.name)
                os.rename(source, target)
        except BaseException:
            # The files themselves tell how far it came; a note of each step could miss the last before Ctrl-C.
            for source, target in zip(_paths(staged), _paths(final), strict=True):
                if not os.path.lexists(source):
                    os.rename(target, source)
                if os.path.lexists(old / target.name):
                    os.rename(old / target.name, target)
            raise
    finally:
        shutil.rmtree(folder)


def _write(scene: Scene, files: SimulationFiles) -> None:
    """Make and write the visibilities, some slots at a time."""
    settings, n_times = scene.settings, len(scene.times)
    files.sky_model.write_text(sky_model_text(scene.sky))
    slot_shape = (len(scene.antenna1), len(scene.freqs))
    n_block = max(1, min(n_times, BLOCK_BYTES // (math.prod(slot_shape) * 32)))
    data = np.empty((n_block, *slot_shape, 4), np.complex64)
    uvw = np.empty((n_block, slot_shape[0], 3))
    rfi = np.empty((n_block, *slot_shape), bool)
    history = json.dumps(dataclasses.asdict(settings))
    with h5py.File(files.truth, "w") as truth, created(files.ms, scene, history) as ms:
        _write_truth(truth, scene, history)
        mask = truth.create_dataset(
            "rfi", (n_times, *slot_shape), bool, chunks=(n_block, *slot_shape), compression="gzip", compression_opts=1
        )
        for first in range(0, n_times, n_block):
            n = min(n_block, n_times - first)
            for i in range(n):
                scene.fill(first + i, data[i], uvw[i], rfi[i])
            ms.write(first, data[:n], uvw[:n])
            mask[first : first + n] = rfi[:n]


def _write_truth(truth: h5py.File, scene: Scene, settings: str) -> None:
    datasets = {
        "time": scene.times,
        "slot": scene.slots,
        "freq": scene.freqs,
        "position": scene.positions,
        "antenna1": scene.antenna1,
        "antenna2": scene.antenna2,
        "dead": scene.dead,
        "patch_radec": scene.sky.patch_radec,
        "tec": scene.tec,
        "amp": scene.amp,
        "phase0": scene.phase0,
        "nan": scene.nan_rows,
    }
    for name, values in datasets.items():
        truth[name] = values
    truth["antenna"] = list(scene.stations)
    truth["patch"] = [f"patch{i}" for i in range(len(scene.sky.patch_lm))]
    truth.attrs.update(noise_jy=scene.noise_jy, tec_phase=TEC_PHASE, recipe=RECIPE, settings=settings)


def _ranges(text: str) -> tuple[tuple[int, int], ...]:
    try:
        pairs = [part.split(":") for part in text.split(",") if part.strip()]
        return tuple((int(begin), int(end)) for begin, end in pairs)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of ranges like 30:33,50:51") from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``chunkcal simulate``: one per setting, with the setting's name and default."""
    usual = {
        field.name: f"{field.default}" if field.default is not None else _usual(field.name)
        for field in dataclasses.fields(Simulation)
    }
    defaults = {field.name: field.default for field in dataclasses.fields(Simulation)}

    def option(name: str, text: str, **how: object) -> None:
        default = f" (default: {usual[name]})" if usual[name] != "()" else ""
        parser.add_argument(f"--{name.replace('_', '-')}", default=defaults[name], help=text + default, **how)

    parser.add_argument("path", help="NAME or NAME.ms: makes NAME.ms, NAME.skymodel and NAME.truth.h5")
    option("telescope", "whose stations and habits", choices=sorted(TELESCOPES))
    option("n_stations", "stations, spread over all baseline lengths", type=int)
    option("n_slots", "time slots, missing ones included", type=int)
    option("interval_s", "length of a slot, s", type=float)
    option("n_channels", "channels", type=int)
    option("channel_width_hz", "width of a channel, Hz", type=float)
    option("frequency_hz", "middle of the first channel, Hz", type=float)
    option("start", "beginning of the first slot, UTC", metavar="YYYY-MM-DDThh:mm:ss")
    option("phase_centre_deg", "J2000, degrees", type=float, nargs=2, metavar=("RA", "DEC"))
    option("n_patches", "patches of the sky, each behind its own ionosphere", type=int)
    option("n_sources", "point sources in all patches", type=int)
    option("peak_jy", "brightest source, Jy", type=float)
    option("noise_jy", "noise of a real or imaginary part, Jy", type=float)
    option("tec_tecu", "rms of the ionospheric screen, TECU", type=float)
    option("amplitude_scatter", "rms of the logarithm of the station amplitudes", type=float)
    option("static_phase_rad", "rms of the constant station phases, rad", type=float)
    option("rfi", "strength of interference; 0 is none, 1 is 5 sigma above the sky", type=float)
    option("autocorrelations", "keep them", action=argparse.BooleanOptionalAction)
    option("missing_slots", "slots that the MS lacks, end excluded", type=_ranges, metavar="BEGIN:END[,...]")
    option("dead_stations", "stations with nothing but noise, by name or index", type=_names, metavar="A[,B...]")
    option("n_nan_rows", "rows of NaN", type=int)
    option("seed", "of all random numbers", type=int)
    parser.add_argument("--overwrite", action="store_true", help="replace files of the same names")


def _usual(name: str) -> str:
    """Say what a setting is if the user says nothing."""
    if name == "noise_jy":
        sefds = ", ".join(f"{key} {telescope.sefd_jy:g} Jy" for key, telescope in TELESCOPES.items())
        return f"thermal, from the SEFD: {sefds}"
    values = {key: getattr(telescope, name) for key, telescope in TELESCOPES.items()}
    plain = {
        key: " ".join(map(str, value)) if isinstance(value, tuple) else str(value) for key, value in values.items()
    }
    return ", ".join(f"{key} {value}" for key, value in plain.items())


def run(args: argparse.Namespace) -> int:
    """Simulate what the parsed options of `add_arguments` say, print what was made, return 0."""
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(Simulation)}
    if values["phase_centre_deg"] is not None:
        values["phase_centre_deg"] = tuple(values["phase_centre_deg"])
    files = simulate(Simulation(**values), args.path, overwrite=args.overwrite)
    settings = Simulation(**values).complete()
    print(
        f"{files.ms}: {settings.n_stations} stations, {settings.n_baselines} baselines, {len(settings.slots())} slots "
        f"of {settings.interval_s:g} s, {settings.n_channels} channels, noise {settings.noise_jy:.3g} Jy\n"
        f"{files.sky_model}: {settings.n_sources} sources in {settings.n_patches} patches\n{files.truth}"
    )
    return 0
