"""A batch server simulated: what an improvement would bring, before it is built.

`arrivals` makes or reads request streams, `steps` says how long a step takes,
`server` runs the clock, `metrics` judges a run, `scaling` fits laws of parallelism,
`roadmap` compares ideas. Nothing here measures, and nothing imports the core: what
was measured comes in as numbers.
"""
