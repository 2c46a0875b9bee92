"""Runs pipelines in environments, compares methods, and writes metrics, tables, reports and videos."""
