"""The contracts of a songmill dataset: columns, folder layout, commit records, configuration, how files are written.

Imports nothing else of songmill.
"""
