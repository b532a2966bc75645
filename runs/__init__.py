"""A run of a command: its options, its directory, its loop, and what it writes. One file for each."""
