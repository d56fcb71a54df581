"""Make the two simulated observations of the demo, with sky model and truth, in demo/.

In: nothing. Out: demo/<name>.ms, demo/<name>.skymodel, demo/<name>.truth.h5.
"""

# A quarter of an hour each: interference, a gap and NaNs as in real life, small enough for a laptop.
DEMO = {
    "lofar": {
        "telescope": "lofar",
        "n_stations": 16,
        "n_slots": 240,
        "n_channels": 32,
        "n_patches": 1,
        "n_sources": 6,
        "peak_jy": 30.0,
        "missing_slots": ((101, 105),),
        "seed": 42,
    },
    "meerkat": {
        "telescope": "meerkat",
        "n_stations": 16,
        "n_slots": 120,
        "n_channels": 32,
        "n_patches": 1,
        "n_sources": 6,
        "n_nan_rows": 200,
        "seed": 43,
    },
}


rule simulate_demo:
    output:
        ms=directory("demo/{demo}.ms"),
        sky_model="demo/{demo}.skymodel",
        truth="demo/{demo}.truth.h5",
    log:
        "logs/simulate_demo/{demo}.log",
    wildcard_constraints:
        demo="lofar|meerkat",
    localrule: True
    conda:
        "../envs/chunkcal.yaml"
    params:
        settings=lambda wildcards: DEMO[wildcards.demo],
    script:
        "../scripts/simulate_demo.py"
