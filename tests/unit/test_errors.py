import pickle

from chunkcal.errors import LONGEST, UserError, near_miss


def test_a_line_is_a_line_whatever_is_in_it():
    error = UserError("a\nb \x1b[31m\0 ünï", "second")
    assert error.lines == ("a\\nb \\x1b[31m\\x00 ünï", "second")
    assert str(error) == "a\\nb \\x1b[31m\\x00 ünï\nsecond"
    assert pickle.loads(pickle.dumps(error)).lines == error.lines


def test_a_long_value_loses_its_middle():
    text = str(UserError("input: " + "x" * 10_000 + " does not exist"))
    assert len(text) <= LONGEST
    assert text.startswith("input: xx")
    assert text.endswith("xx does not exist")


def test_near_misses():
    assert near_miss("TimeStp", ["timestep", "freqstep"]) == "; did you mean timestep?"
    assert near_miss("memorymax", ["MemoryMax"]) == "; did you mean MemoryMax?"
    assert near_miss("xyz", ["a", "b"], "it has") == "; it has a, b"
    assert near_miss(3, []) == "; there are none"
