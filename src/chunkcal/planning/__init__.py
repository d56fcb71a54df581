"""Cut observations into chunks and turn the configuration into DP3 runs."""
