"""Runs of commands: options, run directory, training loop, log, checkpoints and errors, one module each."""
