"""The metric journal, and adapters that are fed from it. No torch training code."""
