"""DP-DCAN: clustering under differential privacy."""
