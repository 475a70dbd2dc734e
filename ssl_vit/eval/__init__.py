"""Scores of frozen features (k-NN, linear) and the features themselves; knows no method and no trainer."""
