"""RESP2 and RESP3: any Redis client, and the SDK."""
