"""Requests from arrival to answer: queue, policies, and the scheduler around a `BatchLoop`."""
