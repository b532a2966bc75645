"""Many runs: sweeps of trials over a grid of arguments, tables and a page of runs, and the pipeline of all stages."""
