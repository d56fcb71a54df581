import pytest

from chunkcal.errors import UserError
from chunkcal.solutions.solutionsteps import Flag, Interpolate, Normalise, Reference, Smooth, resolve_steps
from tiny_h5parm import ALL_STEPS


def test_resolve_steps():
    assert resolve_steps(ALL_STEPS) == (
        Reference("CS002"),
        Flag(5.0, 100.0, None),
        Smooth("gaussian", 40.0, None),
        Interpolate(30.0),
        Normalise(("dir",)),
    )
    assert resolve_steps(None) == resolve_steps([]) == ()
    assert resolve_steps([{"reference": {}}], ["a"]) == (Reference("auto"),)
    assert resolve_steps([{"normalise": {"per": []}}, {"smooth": {"window_hz": 2e6}}])[0] == Normalise(())


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"smoth": {}}, r"solves\[1\].process\[0\]: there is no processing step 'smoth'; did you mean smooth\?"),
        ({"x": {}}, "no processing step 'x'; there are reference, flag, smooth, interpolate, normalise"),
        ({"smooth": {"windows_s": 2}}, r"process\[0\].smooth.windows_s: no such parameter; did you mean window_s\?"),
        (
            {"smooth": {"window_s": 2, "kind": "gausian"}},
            r"smooth.kind: there is no 'gausian'; did you mean gaussian\?",
        ),
        ({"smooth": {"kind": "median"}}, "smooth: neither window_s nor window_hz is given"),
        ({"flag": {"window_s": 0}}, "flag.window_s: 0 is not a positive number"),
        ({"flag": {"window_s": True}}, "flag.window_s: True is not a positive number"),
        ({"flag": {"window_s": float("inf")}}, "flag.window_s: inf is not a positive number"),
        ({"flag": {"window_s": 60, "sigma": "5"}}, "flag.sigma: '5' is not a positive number"),
        ({"interpolate": {}}, "interpolate.max_gap_s is missing"),
        ({"reference": {"station": "CS01HBA0"}}, r"there is no station 'CS01HBA0'; did you mean CS001HBA0\?"),
        ({"reference": "CS001HBA0"}, "reference: 'CS001HBA0' are no parameters"),
        ({"normalise": {"per": "dir"}}, "normalise.per: 'dir' is not a list"),
        ({"normalise": {"per": ["direction"]}}, "normalise.per: there is no 'direction'; .*dir"),
        ({"flag": {}, "smooth": {}}, "is not one step"),
        ("normalise", "is not one step"),
    ],
)
def test_wrong_steps_are_refused(step, message):
    with pytest.raises(UserError, match=message) as error:
        resolve_steps([step], ["CS001HBA0", "RS305HBA"], where="solves[1].process")
    assert "\n" not in str(error.value)


def test_steps_that_do_not_suit_the_kind_of_solutions_are_refused_early():
    smooth = [{"smooth": {"window_s": 60}}]
    assert resolve_steps([*smooth, {"normalise": None}], kinds=["phase", "amplitude"])[1] == Normalise()
    with pytest.raises(
        UserError, match=r"solves\[2\].process\[0\].normalise works on amplitude, and there are phase, tec"
    ):
        resolve_steps([{"normalise": None}], kinds=["tec", "phase"], where="solves[2].process")
    with pytest.raises(UserError, match="smooth cannot be done on rotation solutions"):
        resolve_steps(smooth, kinds=["phase", "amplitude", "rotation"])


def test_what_is_no_list_is_refused():
    with pytest.raises(UserError, match="process: {'flag': {}} is not a list"):
        resolve_steps({"flag": {}})
