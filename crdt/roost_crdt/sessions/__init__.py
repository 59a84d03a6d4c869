"""Sessions of one node without I/O: copies, their shelf, the stream to the standby."""
