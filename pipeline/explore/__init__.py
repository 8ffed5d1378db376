"""A dataset in the browser: look at its rows, listen to them, filter and mark them."""
