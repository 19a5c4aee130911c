"""`ldmkit plan`: time, memory and disk of a recipe, measured before it runs."""
