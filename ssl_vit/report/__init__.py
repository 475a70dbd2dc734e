"""People look at these figures of a run."""
