"""Flag statistics of chunks, of DP3's own steps, and their sums."""
