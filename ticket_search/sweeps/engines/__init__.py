"""What carries out the runs of a sweep: processes of this machine, jobs of Slurm, tasks of Ray."""
