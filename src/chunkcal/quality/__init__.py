"""The quality gate: figures of an observation's solutions, each with limits and a verdict.

`limits` holds what each figure is and how much of it is too much, `statistics` computes the figures from arrays,
`gate` reads the merged h5parms and judges, `words` says in plain words what was found, `observation` does it all
for the pipeline.
"""
