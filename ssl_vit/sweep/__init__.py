"""Many runs of one file: a grid or a search over any settings, by as many processes and machines as there are."""
