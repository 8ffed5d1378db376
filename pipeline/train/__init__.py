"""`songmill train`: settings, data, progress and model cards of training runs."""
