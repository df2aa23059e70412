"""Scores of what was learned: truth, codes, probes, baselines."""
