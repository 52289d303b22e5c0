"""The record of every request, written before its answer leaves."""
