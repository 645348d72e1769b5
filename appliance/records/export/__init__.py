"""The ledger for others: read in the order of its numbers, written as JSONL, CSV, OCSF or CEF, sent over syslog."""
