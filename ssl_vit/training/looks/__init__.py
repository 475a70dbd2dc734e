"""What looks at a run: metrics, progress, health, k-NN. None of them changes what is trained."""
