"""Runs across machines on NVIDIA FLARE: sites, the job that runs on them, and who submits and watches it."""
