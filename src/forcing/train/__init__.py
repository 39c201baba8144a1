"""How stages are trained: one loop, exact to the bit when resumed."""
