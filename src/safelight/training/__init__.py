"""Training: an objective, data, an optimiser and hooks, put together by one trainer."""
