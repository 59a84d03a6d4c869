"""The pure core of roost: rows and joins, records, session fold, replication, takeover.

Nothing here opens a file or a socket, reads a clock, draws a random number or writes a log:
time, randomness and bytes are arguments, results are values.
"""
