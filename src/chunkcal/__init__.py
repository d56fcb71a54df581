"""Pre-process and calibrate radio-interferometric MeasurementSets with DP3, in time chunks, on a dask cluster."""

__version__ = "0.1.0"
