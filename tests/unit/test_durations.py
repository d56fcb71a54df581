from chunkcal.cluster.durations import FACTOR, MARGIN_S, Durations


def test_next_chunk_is_expected_to_take_a_little_longer_than_the_longest_of_its_stage():
    durations = Durations()
    assert durations.expected_s("preprocess") == 0
    for seconds in (10.0, 30.0, 20.0):
        durations.add("preprocess", seconds)
    assert durations.expected_s("preprocess") == FACTOR * 30 + MARGIN_S
    assert durations.expected_s("calibrate") == 0
