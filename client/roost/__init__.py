"""The client library of roost."""
