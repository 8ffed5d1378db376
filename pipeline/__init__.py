"""The ingestion DAG: plan, scan, curate on Ray, ledger, inspection, command line."""
