"""The table of flags."""

import csv

import pytest

from chunkcal.flagging.flags import Flags
from chunkcal.flagging.flagsteps import FlagSteps
from chunkcal.flagging.flagtable import write_table
from flag_counts import flag_counts


def test_the_table_holds_every_count_once(tmp_path):
    flags, steps = Flags(), FlagSteps()
    flags.add(flag_counts(0.25, {"ST000": 0.25, "ST001": 0.25})["counts"])
    flags.add(flag_counts(0.5, {"ST000": 0.5, "ST001": 0.5}, start=1040.0)["counts"])
    steps.add(
        [
            {
                "step": "preprocess.f1",
                "n_flagged": 3,
                "n_total": 12,
                "stations": {"ST000": 0.5, "ST001": 0.0},
                "channels": [0.25, 1],
                "lengths_m": {"200": [50, 2]},
            }
        ],
        0.0,
        60.0,
    )
    write_table({"raw": flags}, steps, tmp_path / "flags.tsv")
    with open(tmp_path / "flags.tsv", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    for axis in ("all", "station", "baseline_m", "channel", "time", "time_channel"):
        own = [row for row in rows if row["stage"] == "raw" and row["axis"] == axis]
        assert sum(int(row["n_flagged"]) for row in own) == flags.n_flagged, axis
        assert sum(int(row["n_total"]) for row in own) == flags.n_total, axis
        assert all(float(r["fraction"]) == pytest.approx(int(r["n_flagged"]) / int(r["n_total"]), 1e-5) for r in own)
    step = [row for row in rows if row["stage"] == "preprocess.f1"]
    assert [(row["axis"], row["name"], row["fraction"]) for row in step] == [
        ("all", "all", "0.25"),
        ("station", "ST000", "0.5"),
        ("station", "ST001", "0"),
        ("baseline_m", "200-500", "0.25"),
        ("channel", "0", "0.25"),
        ("channel", "1", "1"),
        ("time", "1858-11-17T00:00:00", "0.25"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["flags.tsv"]
