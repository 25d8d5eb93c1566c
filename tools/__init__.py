"""Commands that only some people need: python -m tools.report, tools.share."""
