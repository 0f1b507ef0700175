"""Little Assistant: from a name to a tested, deployed personal assistant."""
