"""h5parms: read, merged over chunks and bands, processed."""
