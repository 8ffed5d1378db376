"""The contracts of a songmill dataset: column types, folder layout, configuration, how files are written. Imports nothing else of songmill."""
