"""The parts of identity_ablation.py."""
