"""Flag counts: exact, whatever the blocks and chunks are."""

import json

import casacore.tables as ct
import numpy as np
import pytest

import tiny_ms
from chunkcal.flagging.flags import LENGTH_EDGES_M, FlagCounter, Flags
from chunkcal.products import flag_fractions

N_SLOTS, N_CHANNELS, N_STATIONS, INTERVAL = 40, 70, 4, 8.0
NAMES = [f"ST{i:03d}" for i in range(N_STATIONS)]


@pytest.fixture(scope="module")
def ms(tmp_path_factory):
    """An MS with random flags, a gap, and autocorrelations that are all flagged."""
    path = tiny_ms.make_ms(
        tmp_path_factory.mktemp("flags") / "in.ms", N_STATIONS, N_SLOTS, N_CHANNELS, INTERVAL, missing=(20, 21, 22)
    )
    with ct.table(str(path), readonly=False, ack=False) as table:
        flags = np.random.default_rng(3).random((table.nrows(), N_CHANNELS, 4)) < 0.2
        flags[table.getcol("ANTENNA1") == table.getcol("ANTENNA2")] = True
        table.putcol("FLAG", flags)
    return path


def direct(ms):
    first, second, flags, times = (tiny_ms.read(ms, name) for name in ("ANTENNA1", "ANTENNA2", "FLAG", "TIME"))
    cross = first != second
    return first[cross], second[cross], flags[cross], times[cross]


def test_counts_are_those_of_the_whole_column(ms, monkeypatch):
    monkeypatch.setattr("chunkcal.products._BLOCK_BYTES", 7 * N_CHANNELS * 4)  # blocks that end amid slots
    counts = json.loads(json.dumps(flag_fractions(ms)["counts"]))
    first, second, flags, _ = direct(ms)
    assert (counts["n_flagged"], counts["n_total"]) == (flags.sum(), flags.size)
    for i, name in enumerate(NAMES):
        own = flags[(first == i) | (second == i)]
        assert counts["stations"][name] == [own.sum(), own.size]
    assert counts["channels"] == flags.sum(axis=(0, 2)).tolist()
    assert counts["channel_total"] * N_CHANNELS == flags.size
    assert np.sum(list(counts["lengths_m"].values()), axis=0).tolist() == [flags.sum(), flags.size]
    assert np.sum(counts["times"]["flagged"]) == flags.sum()


def test_baselines_are_sorted_by_length():
    positions = [[0, 0, 0], [60.0, 80.0, 0], [0, 0, 1500.0]]  # 100, 1500 and 1503 m apart
    counter = FlagCounter(["a", "b", "c"], positions, np.array([1e8]), 3, 100.0, 100.0, 10.0)
    flags = np.array([[[True, True, False]], [[True, False, False]], [[False] * 3]])
    counter.add(np.array([0, 0, 1]), np.array([1, 2, 2]), np.full(3, 100.0), flags)
    assert counter.result()["lengths_m"] == {"100": [2, 3], "1000": [1, 6]}
    assert sorted(LENGTH_EDGES_M) == list(LENGTH_EDGES_M)


def parts_of(ms, n):
    """Count the MS in n chunks of rows, whole slots each."""
    n_rows = len(tiny_ms.read(ms, "TIME"))
    per_slot = N_STATIONS * (N_STATIONS + 1) // 2
    edges = np.linspace(0, n_rows // per_slot, n + 1).astype(int) * per_slot
    return [flag_fractions(ms, int(a), int(b - a))["counts"] for a, b in zip(edges, edges[1:], strict=False)]


@pytest.mark.parametrize("n", [1, 3, 37])
def test_chunks_add_up_exactly_in_any_order(ms, n):
    whole, flags = Flags(), Flags()
    whole.add(flag_fractions(ms)["counts"])
    for counts in reversed(parts_of(ms, n)):
        flags.add(json.loads(json.dumps(counts)))
    assert (flags.n_flagged, flags.n_total, flags.channel_total) == (
        whole.n_flagged,
        whole.n_total,
        whole.channel_total,
    )
    assert (flags.stations, flags.lengths_m) == (whole.stations, whole.lengths_m)
    np.testing.assert_array_equal(flags.channels, whole.channels)
    for ours, theirs in zip(flags.waterfall.parts[2:], whole.waterfall.parts[2:], strict=True):
        np.testing.assert_array_equal(ours.sum(axis=0), theirs.sum(axis=0))
    assert flags.fraction == whole.fraction == pytest.approx(0.2, abs=0.01)


def test_a_waterfall_has_flags_where_they_are(ms):
    flags = Flags()
    for counts in parts_of(ms, 37):  # one slot each
        flags.add(counts)
    waterfall = flags.waterfall
    _, _, raw, times = direct(ms)
    slots = np.rint((times - tiny_ms.START) / INTERVAL).astype(int)
    assert len(waterfall.start) == N_SLOTS - 3  # nothing where there are no data
    for start, end, flagged in zip(waterfall.start, waterfall.end, waterfall.flagged, strict=True):
        slot = round((start - tiny_ms.START) / INTERVAL + 0.5)
        assert end - start == pytest.approx(INTERVAL)
        by_channel = raw[slots == slot].sum(axis=(0, 2))
        np.testing.assert_array_equal(flagged, by_channel.reshape(-1, 2).sum(axis=1))  # 70 channels in 35 groups
    coarse = waterfall.coarser(10)
    assert 5 <= len(coarse.start) <= 10
    assert coarse.flagged.sum() == waterfall.flagged.sum()
    assert (coarse.start[1:] >= coarse.end[:-1] - 1e-6).all()
    assert waterfall.coarser(1).total.sum() == waterfall.total.sum()


def test_many_chunks_take_bounded_memory(monkeypatch, ms):
    monkeypatch.setattr("chunkcal.flagging.flags.MAX_MERGED_BINS", 8)
    flags = Flags()
    for counts in parts_of(ms, 37):
        flags.add(counts)
        assert len(flags.waterfall.start) <= 16 + 1
    assert flags.waterfall.flagged.sum() == flags.n_flagged


def test_other_channels_cannot_be_added(ms):
    flags = Flags()
    counts = flag_fractions(ms)["counts"]
    flags.add(counts)
    with pytest.raises(ValueError, match="69 channels instead of 70"):
        flags.add(counts | {"channels": counts["channels"][:-1]})
