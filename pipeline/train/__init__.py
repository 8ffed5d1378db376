"""`songmill train`: what a user sees of training."""
