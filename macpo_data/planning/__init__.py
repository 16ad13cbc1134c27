"""What a recipe takes before any of it runs: memory, disk, work and hours, each an estimate.

`shapes` reads how large a base is, `memory` what a process needs at its peak, `hardware` what there
is, `work` how long it takes, `steps` lays all of it over the steps of a run.
"""
