"""The contracts of a songmill dataset: column types, folder layout, configuration. Imports nothing of songmill's."""
