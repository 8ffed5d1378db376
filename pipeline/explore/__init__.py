"""`songmill explore`: browse, filter, listen to and mark the rows of a dataset in the browser."""
