"""Evaluate pipelines in environments, compare methods, and write metrics, tables, reports and videos."""
