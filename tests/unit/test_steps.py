import dataclasses

import pytest

from chunkcal import dp3
from chunkcal.errors import UserError
from chunkcal.ms import Observation
from chunkcal.planning.chunkrules import STEP_TYPES
from chunkcal.planning.stepdefaults import Channels, channels_after, default_window, with_defaults
from chunkcal.planning.steps import REFUSED, parse_steps, preprocess_run

OBSERVATION = Observation(
    name="a",
    ms="/data/my obs.ms",
    telescope="LOFAR",
    first_time=5217174002.0,
    interval_s=4.0,
    n_slots=1000,
    missing=(),
    n_rows=1000 * 300,
    n_baselines=300,
    stations=tuple(f"S{i}" for i in range(24)),
    n_channels=64,
    channel_width_hz=10e3,
    first_frequency_hz=140e6,
    last_frequency_hz=140.63e6,
    n_correlations=4,
    n_spectral_windows=1,
    fields=("f",),
    phase_centre_deg=(0.0, 52.0),
    columns=("DATA",),
    size_bytes=10**9,
)


def run(*steps, observation=OBSERVATION, **options):
    return preprocess_run(with_defaults(parse_steps(steps), observation), observation, **options)


def test_the_whole_parset():
    strategy = str(dp3.strategies_dir() / "lofar-default.lua")
    done = run(
        {"msin": {"datacolumn": "DATA", "autoweight": False}},
        {"PREFLAGGER": {"baseline": ["RS*&&", "CS001"], "count": {"save": True}}},
        {"AOFlagger": {"autocorr": False}},
        {"averager": {"timestep": 4, "freqstep": 2, "minperc": 12.5}},
        "Counter",
        {"Averager": None},
        {"MsOut": {"tilesize": 2048}},
    )
    assert done == {
        "parsets": [
            {
                "msin": "in.ms",
                "msin.datacolumn": "DATA",
                "msin.autoweight": "false",
                "msout": "out.ms",
                "steps": "[preflagger1,aoflagger2,averager3,counter4,averager5]",
                "preflagger1.type": "preflagger",
                "preflagger1.baseline": "[RS*&&,CS001]",
                "preflagger1.count.save": "true",
                "aoflagger2.type": "aoflagger",
                "aoflagger2.autocorr": "false",
                "aoflagger2.overlapperc": "0",
                "aoflagger2.keepstatistics": "false",
                "aoflagger2.timewindow": "64",
                "aoflagger2.strategy": "aoflagger2-strategy.lua",
                "averager3.type": "averager",
                "averager3.timestep": "4",
                "averager3.freqstep": "2",
                "averager3.minperc": "12.5",
                "counter4.type": "counter",
                "averager5.type": "averager",
                "msout.tilesize": "2048",
            }
        ],
        "links": {"in.ms": "/data/my obs.ms", "aoflagger2-strategy.lua": strategy},
        "product": "out.ms",
        "notes": [],
    }


def test_no_steps_is_a_copy():
    assert run()["parsets"][0] == {"msin": "in.ms", "msout": "out.ms", "steps": "[]"}


def test_the_example_of_batch_preprocess():
    steps = [
        {"MsIn": None},
        {"PreFlagger": None},
        {"AOFlagger": {"memorymax": 8.0}},
        {"Averager": {"timestep": 4, "freqstep": 4}},
        {"MsOut": {"overwrite": True}},
    ]
    parset = run(*steps)["parsets"][0]
    assert parset["aoflagger2.memorymax"] == "8.0"
    assert parset["aoflagger2.timewindow"] == "64"
    assert not [key for key in parset if key.startswith(("msin.", "msout."))]


def test_aliases_numbers_and_own_names():
    pipeline = parse_steps([{"squash": {}}, {"Average2": {}}, {"first": {"type": "DDECal"}}, {"correct": {}}])
    assert [step.type for step in pipeline.steps] == ["averager", "averager", "ddecal", "applycal"]
    assert [step.prefix for step in pipeline.steps][2] == "first"
    assert len({step.prefix for step in pipeline.steps}) == 4


@pytest.mark.parametrize("name", sorted(set(STEP_TYPES) - {"out", "output"}))
def test_every_step_of_dp3(name):
    if STEP_TYPES[name] in REFUSED:
        with pytest.raises(UserError, match="not possible in time chunks: ."):
            parse_steps([name])
    else:
        pipeline = parse_steps([name])
        assert [step.type for step in pipeline.steps] == ([] if name in ("msin", "msout") else [STEP_TYPES[name]])


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([{"AOFlager": {}}], "step 1 .*did you mean AOFlagger"),
        ([{"Xyz": {}}], "no step 'xyz'; DP3 has"),
        ([{"MsIn": {}}, {"msin": {}}], "second MsIn"),
        ([{"MsIn": {"ntimes": 4}}], "ntimes cannot be set here.*chunks"),
        ([{"MsIn": {"name": "x.ms"}}], "name cannot be set here"),
        ([{"MsOut": {"name": "x.ms"}}], "output_dir"),
        ([{"MsOut": {"chunkduration": 10}}], "chunkduration cannot"),
        ([{"Out1": {"name": "x.ms"}}], "second output"),
        ([{"Averager": {"timestep": 2}, "Filter": {}}], "step 1: .*is not"),
        ([{"Averager": [1]}], "is not"),
        ([3], "is not"),
        ([{"Averager": {"time step": 2}}], "'time step' is not"),
        ([{"a": {"type": "counter"}}, {"a": {"type": "counter"}}], "a already"),
    ],
)
def test_step_lists_that_cannot_be_meant(steps, words):
    with pytest.raises(UserError, match=words):
        parse_steps(steps)


def test_values_that_no_parset_can_hold():
    with pytest.raises(UserError, match="PreFlagger: baseline"):
        run({"PreFlagger": {"baseline": "two\nlines"}})


# ---- AOFlagger -------------------------------------------------------------------------------------------


def window(*steps, observation=OBSERVATION, **options):
    pipeline = with_defaults(parse_steps(steps), observation, **options)
    return {step.type: step.parameters for step in pipeline.steps}["aoflagger"]


def test_the_window_fits_the_other_units():
    assert window("AOFlagger")["timewindow"] == 64
    assert window("AOFlagger", {"Averager": {"timestep": 10}})["timewindow"] == 70
    assert window("AOFlagger", {"Averager": {"timestep": 10}}, solve_unit=30)["timewindow"] == 90
    # After an average its slots are longer, and the unit of 30 raw slots is 6 of them.
    assert window({"Averager": {"timestep": 5}}, "AOFlagger", solve_unit=30)["timewindow"] == 66


def test_the_window_depends_on_the_observation():
    short = dataclasses.replace(OBSERVATION, n_slots=40)
    assert window("AOFlagger", observation=short)["timewindow"] == 40
    # 1 GiB / (14.2 B x 2000 baselines x 1024 channels x 4) is 9 slots.
    big = dataclasses.replace(OBSERVATION, n_baselines=2000, n_channels=1024)
    assert window("AOFlagger", observation=big)["timewindow"] == 9
    assert window({"Averager": {"freqstep": 4}}, "AOFlagger", observation=big)["timewindow"] == 36


@pytest.mark.parametrize(
    ("fits", "unit", "expected"), [(100, 7, 70), (60, 7, 56), (20, 24, 12), (20, 23, 1), (64, 1, 64), (1, 4, 8)]
)
def test_the_window_under_a_memory_limit(fits, unit, expected):
    n_visibilities = int((1 << 30) / 14.2 / fits)
    found = default_window(n_visibilities, unit, 1000)
    assert found == expected
    assert found <= max(8, fits)


def test_what_the_user_sets_stays():
    own = {"timewindow": 33, "overlapmax": 3, "keepstatistics": True, "strategy": "generic-default"}
    values = window({"AOFlagger": own})
    assert values == own
    done = run({"AOFlagger": own})
    assert done["links"]["aoflagger1-strategy.lua"].endswith("/generic-default.lua")
    # 0 is DP3's word for "choose by memory".
    assert window({"AOFlagger": {"timewindow": 0}})["timewindow"] == 64


def test_strategy_follows_the_telescope():
    meerkat = dataclasses.replace(OBSERVATION, telescope="MeerKAT")
    assert run("AOFlagger", observation=meerkat)["links"]["aoflagger1-strategy.lua"].endswith("generic-default.lua")
    assert "aoflagger1.strategy" not in run("AOFlagger", command_is_users=True)["parsets"][0]


def test_resolution_becomes_a_number_of_slots():
    parset = run({"Averager": {"timestep": 2}}, {"Averager": {"timeresolution": 30, "freqresolution": "40kHz"}})[
        "parsets"
    ][0]
    assert parset["averager2.timestep"] == "4"
    assert "averager2.timeresolution" not in parset
    assert parset["averager2.freqresolution"] == "40kHz"


# ---- channels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "channels"),
    [
        ([], Channels(64)),
        ([{"Averager": {"freqstep": 4}}, {"Averager": {"freqstep": 2}}], Channels(8, 8)),
        ([{"Averager": {"freqresolution": "39.9 kHz"}}], Channels(16, 4)),
        ([{"Averager": {"freqresolution": 20000}}], Channels(32, 2)),
        ([{"Averager": {"freqstep": 1000}}], Channels(1, 64)),
        ([{"Demixer": {"freqstep": 16}}], Channels(4, 16)),
        ([{"MsIn": {"startchan": 10, "nchan": 20}}, {"Averager": {"freqstep": 5}}], Channels(4, 5)),
        ([{"Filter": {"startchan": 60}}], Channels(4)),
        ([{"Filter": {"nchan": "nchan/2"}}, {"Averager": {"freqstep": 3}}], Channels(None, 3)),
    ],
)
def test_channels(steps, channels):
    assert channels_after(parse_steps(steps), OBSERVATION) == channels


@pytest.mark.parametrize("values", [{"freqstep": 3}, {"freqresolution": "x"}, {"freqstep": "two"}])
def test_channels_that_dp3_would_refuse(values):
    with pytest.raises(UserError, match="Averager|freqstep"):
        channels_after(parse_steps([{"Averager": values}]), OBSERVATION)


# ---- ApplyCal --------------------------------------------------------------------------------------------


@pytest.fixture
def h5parm(tmp_path):
    path = tmp_path / "my solutions.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n")
    return path


def two_tables(path, prefix, **options):
    two_tables.asked = (path, prefix, options)
    return {f"{prefix}.steps": "[amp,phase]", f"{prefix}.amp.correction": "a", f"{prefix}.phase.correction": "p"}


def test_applycal_asks_what_the_file_holds(h5parm):
    values = {"parmdb": h5parm.name, "interpolation": "linear", "invert": False, "updateweights": True, "solset": "s"}
    done = run({"ApplyCal": values}, extra_inputs_dir=str(h5parm.parent), applycal_keys=two_tables)
    options = {"interpolation": "linear", "solset": "s", "invert": False, "stations": OBSERVATION.stations}
    assert two_tables.asked == (str(h5parm), "applycal1", options)
    assert done["links"]["applycal1-parmdb.h5"] == str(h5parm)
    parset = {key: value for key, value in done["parsets"][0].items() if key.startswith("applycal1.")}
    assert parset == {
        "applycal1.type": "applycal",
        "applycal1.parmdb": "applycal1-parmdb.h5",
        "applycal1.invert": "false",
        "applycal1.updateweights": "true",
        "applycal1.steps": "[amp,phase]",
        "applycal1.amp.correction": "a",
        "applycal1.phase.correction": "p",
    }


def test_stations_that_need_no_solutions(h5parm):
    for before, values in (([{"Filter": {"remove": True}}], {}), ([], {"missingantennabehavior": "Flag"})):
        run(*before, {"ApplyCal": {"parmdb": str(h5parm)} | values}, applycal_keys=two_tables)
        assert two_tables.asked[2]["stations"] is None


def test_applycal_follows_the_user(h5parm):
    def never(*args, **options):
        raise AssertionError("asked")

    for values in ({"correction": "phase000"}, {"steps": ["x"], "x.correction": "phase000"}):
        own = {"parmdb": str(h5parm), "interpolation": "linear", **values}
        parset = run({"ApplyCal": own}, applycal_keys=never)["parsets"][0]
        # DP3's sub-steps do not inherit it, and it is an unused key beside them.
        place = "applycal1.x.interpolation" if "steps" in values else "applycal1.interpolation"
        assert [key for key in parset if key.endswith("interpolation")] == [place]


def test_applycal_of_an_old_table(tmp_path):
    (tmp_path / "instrument").mkdir()
    parset = run({"ApplyCal": {"parmdb": str(tmp_path / "instrument")}}, applycal_keys=two_tables)["parsets"][0]
    assert parset["applycal1.parmdb"] == "applycal1-parmdb"
    assert "applycal1.steps" not in parset
