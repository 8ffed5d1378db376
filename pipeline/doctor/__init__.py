"""`songmill doctor`: whether this machine can run a profile, and what to do if it cannot."""
