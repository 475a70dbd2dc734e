"""From a big network to a small one without labels: pruned, trained sparse, or searched for."""
