"""Where the same guardrails are hosted: the command line and other frameworks."""
