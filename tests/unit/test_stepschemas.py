import pytest

from chunkcal.errors import UserError
from chunkcal.planning.chunkrules import STEP_TYPES
from chunkcal.planning.steps import REFUSED, parse_steps
from chunkcal.planning.stepschemas import _KINDS, check_step, table


def problems(step_type, parameters, **options):
    try:
        check_step(step_type, parameters, "here", **options)
    except UserError as error:
        return str(error).splitlines()
    return []


def test_the_table_knows_every_step_that_can_run():
    assert set(STEP_TYPES.values()) - set(REFUSED) <= set(table())
    specs = [spec for step in table().values() for spec in step.values()]
    assert all(spec.get("type", "value") in _KINDS for spec in specs)
    assert all(spec.get("step", "applycal") in table() for spec in specs)


def test_defaults_are_values_that_pass():
    for step_type, parameters in table().items():
        given = {name: spec["default"] for name, spec in parameters.items() if "default" in spec}
        assert problems(step_type, given) == []


@pytest.mark.parametrize(
    ("step_type", "parameters"),
    [
        ("averager", {"timestep": 4, "freqresolution": "48.8kHz", "minperc": "12.5"}),
        ("averager", {"timestep": "0x10", "freqresolution": 48800.0, "timeresolution": 8}),
        ("preflagger", {"expr": "not (low or rfi)", "low.elevation": "0deg..20deg", "rfi.freqrange": ["10..12 MHz"]}),
        ("preflagger", {"baseline": [["CS*"], "RS*&&"], "amplmax": [100, None, None, 100], "count.save": True}),
        ("preflagger", {"expr": "s1", "s1.expr": "s2", "s1.s2.chan": "[0..nchan/32-1]", "timeslot": "1..4"}),
        ("applycal", {"steps": ["amp", "ph"], "amp.correction": "amplitude000", "ph.correction": "phase000"}),
        ("applycal", {"steps": "[amp]", "amp.missingantennabehavior": "Flag", "parmdb": "x.h5"}),
        ("predict", {"applycal.steps": ["a"], "applycal.a.soltab": "x", "applycal.parmdb": "h.h5", "operation": "add"}),
        ("gaincal", {"applycal.correction": "phase000", "uvlambdamin": 30, "usebeammodel": "true"}),
        ("ddecal", {"initialsolutions.h5parm": "a.h5", "beammode": "array_factor", "uvmrange": ["0..100"]}),
        ("ddecal", {"antennaconstraint": [["a", "b"]], "mode": "TECandPhase", "tecscreen.order": 3}),
        ("demixer", {"othersources": ["CygA"], "CygA.phasecenter": ["1h", "2d"]}),
        ("msin", {"startchan": "nchan/32", "nchan": 10, "band": -1}),
        ("msout", {"storagemanager": "dysco", "storagemanager.databitrate": 8}),
        ("stationadder", {"stations": {"ST1": ["CS*"]}}),
        ("stationadder", {"stations": "{ST1:[CS*]}"}),
        ("python", {"python.class": "Mine", "of": "any", "own.name": {"it": "likes"}}),
        ("null", {}),
    ],
)
def test_what_dp3_accepts(step_type, parameters):
    assert problems(step_type, parameters) == []


@pytest.mark.parametrize(
    ("step_type", "parameters", "words"),
    [
        ("averager", {"timestp": 4}, "`timestp`: no such parameter; did you mean timestep?"),
        ("averager", {"TimeStep": 4}, "did you mean timestep?"),
        ("averager", {"xyz": 4}, "there are freqresolution, freqstep"),
        ("null", {"xyz": 4}, "there are none"),
        ("averager", {"timestep": 4.0}, "`timestep`: 4.0 is not a whole number, 0 or more"),
        ("averager", {"timestep": -4}, "-4 is not a whole number, 0 or more"),
        ("averager", {"timestep": True}, "True is not"),
        ("averager", {"timestep": [4]}, "[4] is not"),
        ("averager", {"minperc": "many"}, "'many' is not a number"),
        ("averager", {"minperc": float("nan")}, "nan is not a finite number"),
        ("averager", {"freqresolution": "48.8 parsec"}, "is not a frequency such as"),
        ("aoflagger", {"keepstatistics": "nope"}, "'nope' is not true or false"),
        ("aoflagger", {"pulsar": True}, "`pulsar`: no such parameter"),
        ("aoflagger", {"count.sav": True}, "did you mean count.save?"),
        ("aoflagger", {"strategy": ["a.lua"]}, "is not text"),
        ("applycal", {"interpolation": "linaer"}, "did you mean linear?"),
        ("applycal", {"missingantennabehavior": "warn"}, "there are error, flag, unit"),
        ("applycal", {"steps": ["amp"], "apm.correction": "x"}, "steps must name apm first"),
        ("applycal", {"steps": ["amp"], "amp.corection": "x"}, "did you mean correction?"),
        ("predict", {"applycal.parmbd": "x"}, "did you mean parmdb?"),
        ("preflagger", {"low.elevation": "x"}, "expr must name low first"),
        ("ddecal", {"mode": "diagnal"}, "did you mean diagonal?"),
        ("stationadder", {"stations": ["a"]}, "is not a map such as"),
        ("preflagger", {"timeofday": object}, "has no meaning for DP3"),
    ],
)
def test_what_it_would_refuse(step_type, parameters, words):
    found = problems(step_type, parameters)
    assert len(found) == 1
    assert found[0].startswith("here: `")
    assert words in found[0]


def test_a_newer_dp3_may_know_more_but_types_stay():
    assert problems("averager", {"new": 4, "timestep": "x"}, allow_unknown=True) == [
        "here: `timestep`: 'x' is not a whole number, 0 or more"
    ]


def test_all_problems_of_a_list_at_once():
    with pytest.raises(UserError) as caught:
        parse_steps([{"Averager": {"timestp": 1, "freqstp": 1}}, "AOFlagger", {"Counter": {"pth": "x"}}])
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "preprocess.steps, step 1 (Averager)",
        "preprocess.steps, step 1 (Averager)",
        "preprocess.steps, step 3 (Counter)",
    ]
    assert lines[2].endswith("`pth`: no such parameter; did you mean path?")
    assert len(parse_steps([{"Averager": {"timestp": 1}}], allow_unknown=True).steps) == 1
