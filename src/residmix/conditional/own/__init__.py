"""Effects by component: where fits begin, what is left of rows, what no rows tell of."""
