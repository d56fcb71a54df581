"""The output folder as a Workflow Run RO-Crate, so that it can be archived and found: ``ro-crate-metadata.json``.

Profiles: Process Run Crate 0.5, Workflow Run Crate 0.5 (researchobject.org/workflow-run-crate), Workflow RO-Crate 1.0.
Nothing is fetched from the network.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rocrate.model.contextentity import ContextEntity
from rocrate.rocrate import ROCrate

from chunkcal.lineage.provenance import load_provenance

PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
_CONTEXT = "https://w3id.org/ro/terms/workflow-run/context"  # of the terms of these profiles, such as sha256


def write_crate(
    *, provenance: Iterable[str | os.PathLike], snakefile: str | os.PathLike, output: str | os.PathLike
) -> None:
    """Describe the output folder of a run.

    Parameters
    ----------
    provenance
        ``<output_dir>/<obs>/provenance.json`` of all observations.
    snakefile
        The workflow; it and what it includes are copied to ``plan/workflow``.
    output
        ``<output_dir>/ro-crate-metadata.json``.
    """
    folder = Path(output).absolute().parent
    observations = {Path(path).parent.name: load_provenance(folder, Path(path).parent.name) for path in provenance}
    copied = _copy_workflow(Path(snakefile), folder / "plan" / "workflow")
    crate = ROCrate(version="1.1")
    crate.metadata.extra_contexts.append(_CONTEXT)
    builder = _Builder(crate, folder)
    first = next(iter(observations.values()))
    workflow = _workflow(builder, copied.relative_to(folder), first["software"])
    objects = [*builder.settings(first["config"]), *builder.inputs(observations)]
    results = [item for name, found in observations.items() for item in builder.products(name, found)]
    # The report may still be under way; the run does not end well without it.
    results += [builder.file(name) for name in ("report.html", "plan/chunks.tsv")]
    spans = [_span(list(stage.values())) for found in observations.values() for stage in found["chunks"].values()]
    start, end = min(span[0] for span in spans), max(span[1] for span in spans)
    actions = [builder.action("#run", "chunkcal run", workflow, objects, results, (start, end))]
    for name, found in observations.items():
        actions += builder.stages(name, found)
    crate.root_dataset["mentions"] = actions
    crate.root_dataset["conformsTo"] = [
        builder.add(uri, "CreativeWork", name=name, version=uri.rsplit("/", 1)[1]) for uri, name in PROFILES.items()
    ]
    crate.name = f"Calibrated MeasurementSets: {', '.join(observations)}"
    crate.description = "MeasurementSets pre-processed and calibrated with DP3 by chunkcal, with how they were made."
    crate.datePublished = end
    # The crate belongs to the user's data, whose licence only the user knows.
    crate.root_dataset["license"] = "no licence was chosen; set license here before the crate is published"
    crate.metadata.write(folder)


def _copy_workflow(snakefile: Path, target: Path) -> Path:
    """Copy the workflow as it lies in its repository, so that its includes are found."""
    shutil.rmtree(target, ignore_errors=True)
    for path in sorted((snakefile.parent / "workflow").rglob("*")):
        if path.suffix in (".smk", ".py", ".yaml"):
            copy = target / path.relative_to(snakefile.parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    return Path(shutil.copyfile(snakefile, target / "Snakefile"))


def _workflow(builder: _Builder, path: Path, software: Mapping[str, Any]) -> Any:
    version = f"{software['chunkcal']}" + (f" (commit {software['commit']})" if software["commit"] else "")
    workflow = builder.crate.add_workflow(
        None, str(path), main=True, lang="snakemake", properties={"name": "chunkcal", "softwareVersion": version}
    )
    workflow["softwareRequirements"] = [
        builder.add(f"#{name}", "SoftwareApplication", name=name, softwareVersion=number)
        for name, number in {"Python": software["python"], **software["packages"]}.items()
    ]
    return workflow


def _span(entries: Iterable[Mapping[str, Any]]) -> tuple[str, str]:
    """Give start and end of DP3 runs, ISO 8601."""
    times = [(entry["start"], entry["end"]) for entry in entries if "end" in entry]
    start, end = (min(time[0] for time in times), max(time[1] for time in times)) if times else (0.0, 0.0)
    return _iso(start), _iso(end)


def _iso(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="seconds")


class _Builder:
    """Adds entities to a crate."""

    def __init__(self, crate: ROCrate, folder: Path) -> None:
        self.crate, self.folder = crate, folder

    def add(self, uri: str, kind: str, /, **properties: Any) -> Any:
        return self.crate.add(ContextEntity(self.crate, uri, properties={"@type": kind, **properties}))

    def file(self, path: str, **properties: Any) -> Any:
        return self.crate.add_file(None, path, properties={"name": path, **properties})

    def settings(self, config: Mapping[str, Any]) -> list[Any]:
        """Add the configuration, a value for each key."""
        return [
            self.add(f"#config/{key}", "PropertyValue", name=key, value=json.dumps(value))
            for key, value in sorted(config.items())
        ]

    def inputs(self, observations: Mapping[str, Any]) -> list[Any]:
        """Add the inputs, which stay outside of the crate, by their URI."""
        found = {path: known for each in observations.values() for path, known in each["inputs"].items()}
        entities = []
        for path, known in sorted(found.items()):
            add = self.crate.add_file if "sha256" in known else self.crate.add_dataset
            entities.append(add(Path(path).as_uri(), properties={"name": Path(path).name, **_digests(known)}))
        return entities

    def products(self, name: str, found: Mapping[str, Any]) -> list[Any]:
        products = found["products"]
        ms = self.crate.add_dataset(None, products["ms"]["path"], properties={"name": name, **_digests(products["ms"])})
        files = [self.file(each["path"], **_digests(each)) for each in products["solutions"].values()]
        return [ms, *files, self.file(f"{name}/provenance.json", encodingFormat="application/json")]

    def stages(self, name: str, found: Mapping[str, Any]) -> list[Any]:
        """Add the DP3 runs of each stage as one action."""
        actions = []
        for stage, chunks in found["chunks"].items():
            versions = sorted({entry["dp3_version"] for entry in chunks.values() if entry.get("dp3_version")})
            dp3 = self.add(
                f"#DP3-{'-'.join(versions)}",
                "SoftwareApplication",
                name="DP3",
                softwareVersion=", ".join(versions),
                url="https://git.astron.nl/RD/DP3",
            )
            links = {path for entry in chunks.values() for path in entry["links"].values()}
            uris = [Path(path).as_uri() for path in sorted(links & found["inputs"].keys())]
            if stage == "apply":
                uris += [each["path"] for each in found["products"]["solutions"].values()]
            own = found["products"]["solutions"].values() if stage == "calibrate" else []
            results = [each["path"] for each in own] or ([found["products"]["ms"]["path"] + "/"])
            title = f"{stage} {name}: {len(chunks)} chunks; every DP3 run is in {name}/provenance.json"
            objects = [self.crate.dereference(uri) for uri in uris]
            products = [self.crate.dereference(path) for path in results]
            actions.append(self.action(f"#{stage}/{name}", title, dp3, objects, products, _span(list(chunks.values()))))
        return actions

    def action(
        self, identifier: str, name: str, instrument: Any, objects: list, results: list, times: tuple[str, str]
    ) -> Any:
        action = self.crate.add_action(instrument, identifier, objects, results, {"name": name})
        action["startTime"], action["endTime"] = times
        action["actionStatus"] = "http://schema.org/CompletedActionStatus"
        return action


def _digests(known: Mapping[str, Any]) -> dict[str, Any]:
    """Pick digests of an input or product, under the names of the profile and of chunkcal."""
    found = {key: known[key] for key in ("sha256",) if key in known}
    if "table_dat_sha256" in known:
        found["identifier"] = f"sha256 of table.dat: {known['table_dat_sha256']}"
        found["contentSize"] = str(known["n_bytes"])
    return found
