"""Requests from arrival to answer: a scheduler, workers, an asyncio engine, an HTTP server.

`policies`, `rules`, `queue` and `scheduler` are synchronous and pure; `worker` runs a scheduler
in a thread or process, `workers` keeps several, `async_engine` answers from them, and `http`
says it as OpenAI does.
"""
