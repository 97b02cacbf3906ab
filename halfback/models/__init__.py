"""Models: load one by name, cut it in two after any block, choose what each half trains."""
