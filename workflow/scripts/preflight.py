"""Say what a run would find and do, and all that is in its way."""

import io
import sys
from pathlib import Path

from chunkcal import preflight

text = io.StringIO()
passed = preflight.report(snakemake.params.config, text)
print(text.getvalue(), end="")
Path(snakemake.log[0]).write_text(text.getvalue())
sys.exit(not passed)
