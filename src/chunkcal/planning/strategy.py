"""A strategy: solves in a row, each of which sees those before it applied; and the DP3 runs that this takes.

Solves with the same directions share one pass over the data. DDECal hands the model it has used, with its solutions on
it, to the next solve (``keepmodel``, ``reusemodel``), so that one solves for what the others have left. Where the
directions change, a new pass begins, on data that have the solutions of the passes before it applied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chunkcal.errors import UserError
from chunkcal.planning import parameters
from chunkcal.planning.requests import step_name
from chunkcal.planning.skymodel import SkyModel
from chunkcal.planning.solves import FULL_JONES, Solve, SolveInput, corrections, resolve_solve

SKY = "sky.skymodel"  # DP3 reads a text sky model only under this ending, or .txt
SOLUTIONS = "solutions"  # folder of a chunk's h5parms


@dataclass(frozen=True)
class Pass:
    """Solves that share one DP3 run over the data, and the h5parms that are applied before them."""

    solves: tuple[Solve, ...]
    preapply: tuple[str, ...]

    @property
    def is_directional(self) -> bool:
        """Whether its solutions differ between directions."""
        return self.solves[0].is_directional


@dataclass(frozen=True)
class Strategy:
    """The passes of a strategy in their order, and the sky model (absolute path) that they share."""

    passes: tuple[Pass, ...]
    sky_model: str

    @property
    def solves(self) -> tuple[Solve, ...]:
        """All solves in their order."""
        return tuple(solve for one in self.passes for solve in one.solves)

    @property
    def is_directional(self) -> bool:
        """Whether the last pass has several directions; no other one can."""
        return self.passes[-1].is_directional


def resolve_strategy(
    section: Mapping[str, Any], sky_model: str, sky: SkyModel, given: SolveInput, extra_inputs_dir: str | None = None
) -> Strategy:
    """Turn the ``calibrate`` section into passes.

    Parameters
    ----------
    section
        Its ``solves``; see `solves.resolve_solve`.
    sky_model, sky
        Absolute path of the sky model and what it holds.
    given
        The pre-processed data.
    extra_inputs_dir
        Folder of relative paths.

    Raises
    ------
    UserError
        As `resolve_solve`; two solves have one name; a direction-dependent solve is followed by one with other
        directions or another model.
    """
    solves = [resolve_solve(solve, given, sky, extra_inputs_dir) for solve in section["solves"]]
    names = [solve.name for solve in solves]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"calibrate.solves: two solves are called {twice}; give each a name of its own")
    passes: list[Pass] = []
    for solve in solves:
        last = passes[-1] if passes else None
        if last and not solve.preapply and _share_model(last.solves[0], solve):
            passes[-1] = Pass((*last.solves, solve), last.preapply)
            continue
        if last and last.is_directional:
            raise UserError(
                f"calibrate.solves, solve {solve.name}: its directions, model or preapply differ from those of the"
                f" direction-dependent solve {last.solves[-1].name} before it, whose solutions cannot be applied to the"
                " data; put it before that one"
            )
        passes.append(Pass((solve,), solve.preapply))
    strategy = Strategy(tuple(passes), sky_model)
    for solve in solves:
        corrections(solve)  # refuses what cannot be applied
    return strategy


def _share_model(one: Solve, other: Solve) -> bool:
    return sorted(one.directions) == sorted(other.directions) and one.model == other.model


# ---- DP3 runs -------------------------------------------------------------------------------------------


def calibrate_run(strategy: Strategy, extra_inputs_dir: str | None = None) -> dict[str, Any]:
    """Make the DP3 runs that solve one chunk, one for each pass; no MeasurementSet is written.

    Returns
    -------
    dict
        ``parsets``, ``links``, ``product`` (the folder of the h5parms, one for each solve); ``threads`` if only that
        number of threads gives the same bits everywhere. The link ``in.ms`` is the caller's to add.
    """
    links = {SKY: strategy.sky_model}
    parsets = []
    before: list[Pass] = []
    for one in strategy.passes:
        # Nearest, so that each slot gets its own interval's solution: only that is the same in every chunk.
        undo = _Undo(links, "nearest", f"{SOLUTIONS}/")
        for earlier in before:
            undo.add_pass(earlier)
        undo.add_files(one.preapply)
        steps, values = undo.steps, dict(undo.values)
        for number, solve in enumerate(one.solves):
            step = step_name(solve.name)
            steps.append(step)
            own = _solve_values(solve, step, links, extra_inputs_dir)
            if number == 0:
                own |= {f"{step}.sourcedb": SKY, f"{step}.directions": _direction_lists(solve)}
            else:
                # All of the model is needed, so take the names it got from the solve that has predicted it.
                own |= {f"{step}.reusemodel": f"[{step_name(one.solves[0].name)}.*]"}
            if number < len(one.solves) - 1:
                own[f"{step}.keepmodel"] = "true"
            values |= own
        # DP3 would write corrected data back to its input; behind a null step it writes nothing (base/DP3.cc).
        parsets.append({"msin": "in.ms", "steps": f"[{','.join(steps)},null]", **values, "null.type": "null"})
        before.append(one)
    one_thread = {"threads": 1} if any(solve.depends_on_threads for solve in strategy.solves) else {}
    return {"parsets": parsets, "links": links, "product": SOLUTIONS, **one_thread}


def _solve_values(solve: Solve, step: str, links: dict[str, str], extra_inputs_dir: str | None) -> dict[str, str]:
    where = f"calibrate.solves, solve {solve.name}: extra"
    linked, own_links, _ = parameters.link_files(where, "ddecal", step, solve.parameters, extra_inputs_dir)
    links |= own_links
    values = {f"{step}.type": "ddecal", f"{step}.h5parm": f"{SOLUTIONS}/{solve.name}.h5"}
    return values | {f"{step}.{key}": parameters.value_text(f"{where}.{key}", value) for key, value in linked.items()}


def _direction_lists(solve: Solve) -> str:
    return parameters.value_text(f"calibrate.solves, solve {solve.name}", [list(each) for each in solve.directions])


class _Undo:
    """Collects the ApplyCal steps that undo what has been solved for, in the order in which they must be undone."""

    def __init__(self, links: dict[str, str], interpolation: str, folder: str = "") -> None:
        self.links, self.interpolation, self.folder = links, interpolation, folder
        self.steps: list[str] = []
        self.values: dict[str, str] = {}

    def add_files(self, paths: Sequence[str]) -> None:
        """Apply h5parms of the user."""
        for path in paths:
            from chunkcal.solutions.h5parm import applycal_keys  # h5py is slow to import, and most runs have none

            step = f"pre{len(self.steps) + 1}"
            link = f"{step}.h5"
            self.links[link] = path
            self._add(step, applycal_keys(path, step, interpolation=self.interpolation), link)

    def add_pass(self, one: Pass, direction: str | None = None) -> None:
        """Apply what a pass has solved for, in one direction if it has several."""
        self.add_files(one.preapply)
        self._add(f"apply{len(self.steps) + 1}", None, "", list(_corrections(one, self.folder, direction)))

    def _add(self, step: str, keys: dict[str, str] | None, parmdb: str, entries: Sequence[dict[str, str]] = ()) -> None:
        self.steps.append(step)
        self.values[f"{step}.type"] = "applycal"
        if keys is not None:
            self.values |= {f"{step}.parmdb": parmdb, **keys}
            return
        self.values |= applycal_values(step, entries, self.interpolation)


def applycal_values(prefix: str, entries: Sequence[Mapping[str, str]], interpolation: str) -> dict[str, str]:
    """Give the keys of an ApplyCal step, or of the ``applycal`` of a predict, that takes one table after the other.

    Each sub-step gets its own ``interpolation``: it is not inherited (DP3 6.6, steps/OneApplyCal.cc).
    """
    names = [f"t{number + 1}" for number in range(len(entries))]
    values = {f"{prefix}.steps": f"[{','.join(names)}]"}
    for name, entry in zip(names, entries, strict=True):
        values |= {f"{prefix}.{name}.{key}": value for key, value in entry.items()}
        values[f"{prefix}.{name}.interpolation"] = interpolation
    return values


def _corrections(one: Pass, folder: str = "", direction: str | None = None) -> Iterator[dict[str, str]]:
    """Yield h5parm and table in the order of undoing: the last solve was found with those before it on the model."""
    for solve in reversed(one.solves):
        place = {"parmdb": f"{folder}{solve.name}.h5"}
        if direction is not None:
            place["direction"] = _name_of_direction(one, solve, direction)
        tables = corrections(solve)
        if tables == FULL_JONES:
            yield place | {"correction": "fulljones", "soltab": "[amplitude000,phase000]"}
            continue
        for table in tables:
            yield place | {"correction": table}


def _name_of_direction(one: Pass, solve: Solve, patch: str) -> str:
    """Name a direction as DDECal does: all its patches, but the first alone where the model was another solve's."""
    (patches,) = (direction for direction in one.solves[0].directions if patch in direction)
    return f"[{','.join(patches)}]" if solve is one.solves[0] else f"[{patches[0]}]"


def apply_run(strategy: Strategy, settings: Mapping[str, Any], product: str = "out.ms") -> dict[str, Any]:
    """Make the DP3 run that applies the merged solutions to one chunk.

    Direction-dependent solutions are subtracted with the patches that they belong to (``subtract``), or applied as
    those of one patch (``direction``); with neither they are left to the imager.

    The keys follow from the modes alone, because the merged files do not exist yet when the plan is made.

    Parameters
    ----------
    strategy
        What is applied.
    settings
        The ``apply`` section: ``interpolation``, ``direction``, ``subtract``.
    product
        Name of the MeasurementSet that is written.

    Returns
    -------
    dict
        ``parsets``, ``links`` and ``product``. The links ``in.ms`` and ``<solve>.h5`` are the caller's to add.
    """
    interpolation = settings.get("interpolation", "linear")
    direction, subtract = settings.get("direction"), settings.get("subtract") or []
    links: dict[str, str] = {}
    undo = _Undo(links, interpolation)
    last = strategy.passes[-1]
    for one in strategy.passes[:-1]:
        undo.add_pass(one)
    _refuse_unknown_patches(strategy, direction, subtract)
    if last.is_directional:
        undo.add_files(last.preapply)
        last = Pass(last.solves, ())
        if subtract:
            links[SKY] = strategy.sky_model
            undo.steps.append("subtract")
            undo.values |= _subtract_values(last, subtract, interpolation)
        if direction:
            undo.add_pass(last, direction)
    else:
        undo.add_pass(last)
    steps = f"[{','.join(undo.steps)}]"
    return {
        "parsets": [{"msin": "in.ms", "msout": product, "steps": steps, **undo.values}],
        "links": links,
        "product": product,
    }


def _refuse_unknown_patches(strategy: Strategy, direction: str | None, subtract: Any) -> None:
    if not (direction or subtract):
        return
    what = "apply.direction" if direction else "apply.subtract"
    if not strategy.is_directional:
        raise UserError(
            f"{what} is set, but no solve has directions; set directions of the last solve, or leave it out"
        )
    known = [patch for patches in strategy.passes[-1].solves[0].directions for patch in patches]
    for patch in [direction or known[0], *(subtract if subtract != "all" else [])]:
        if patch not in known:
            raise UserError(f"{what} names {patch}, which is no direction of the solves; there are {', '.join(known)}")


def _subtract_values(one: Pass, patches: Sequence[str] | str, interpolation: str) -> dict[str, str]:
    """Give the step that subtracts patches, as the solutions corrupt them."""
    first = one.solves[0]
    groups = [each for each in first.directions if patches == "all" or set(each) & set(patches)]
    partial = next((each for each in groups if patches != "all" and not set(each) <= set(patches)), None)
    if partial:
        raise UserError(f"apply.subtract: the patches {', '.join(partial)} are one direction; name all of them or none")
    if len(one.solves) > 1 and any(len(each) > 1 for each in groups):
        raise UserError(
            "apply.subtract: DP3 names directions of several patches differently in each solve of a row; give each"
            " patch a direction of its own"
        )
    # A model is corrupted in the opposite order: by the first solve first.
    entries = list(_corrections(one))[::-1]
    names = [f"'[{','.join(each)}]'" if len(each) > 1 else f"[{each[0]}]" for each in groups]
    values = {
        "type": "h5parmpredict",
        "sourcedb": SKY,
        "directions": f"[{','.join(names)}]",
        "operation": "subtract",
        # The table that names the directions; those that corrupt are the sub-steps'.
        "applycal.parmdb": f"{first.name}.h5",
        "applycal.correction": corrections(first)[0],
    }
    values |= {key: parameters.value_text(key, value) for key, value in first.model.items()}
    return {f"subtract.{key}": value for key, value in values.items()} | applycal_values(
        "subtract.applycal", entries, interpolation
    )


def fit_run(strategy: Strategy, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Make the DP3 run for the fit of a chunk to the model: the model visibilities, and what is left of the data.

    With direction-dependent solutions no data are corrected for all directions at once. Then the run first subtracts
    all patches as the solutions corrupt them, and what is left should be noise.

    Returns
    -------
    dict
        ``parsets``, ``links`` and ``product``. The worker makes the product from the MeasurementSets that DP3 writes:
        ``model.ms``, and ``residual.ms`` if it subtracts.
    """
    first = strategy.passes[-1].solves[0]
    patches = [patch for direction in first.directions for patch in direction]
    model = {
        "msin": "in.ms",
        "msout": "model.ms",
        "steps": "[predict]",
        "predict.type": "predict",
        "predict.sourcedb": SKY,
        "predict.sources": parameters.value_text("sky model", patches),
        **{f"predict.{key}": parameters.value_text(key, value) for key, value in first.model.items()},
    }
    links = {SKY: strategy.sky_model}
    if strategy.is_directional:
        out = "residual.ms"
        residual = apply_run(strategy, {**settings, "direction": None, "subtract": "all"}, out)
        # The model replaces the data, whatever they were.
        steps = f"{residual['parsets'][0]['steps'].removesuffix(']')},residual,predict]"
        writing = {"residual.type": "msout", "residual.name": out}
        model = residual["parsets"][0] | writing | model | {"steps": steps}
        links |= residual["links"]
    return {"parsets": [model], "links": links, "product": "fit.json"}
