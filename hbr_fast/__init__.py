"""Hardness-based resampling at memory speed."""
