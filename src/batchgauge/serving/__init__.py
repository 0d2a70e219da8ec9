"""Requests that arrive over time: a scheduler, an asyncio engine, workers, an HTTP server."""
