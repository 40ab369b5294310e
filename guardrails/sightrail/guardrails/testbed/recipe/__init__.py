"""How the testbed is made: `python -m sightrail.guardrails.testbed.recipe` rebuilds it."""
