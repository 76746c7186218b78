"""Floor 4, the logger wing: the metric journal, and adapters that are fed from it. No torch training code."""
