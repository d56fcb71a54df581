"""The shared dask cluster of a run: who owns it, how a chunk gets onto it, and how DP3 dies with its task."""
