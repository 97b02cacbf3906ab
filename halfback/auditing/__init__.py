"""Attacks on one's own set-up from the server's seat: what activations, gradients, slopes and a model tell of rows."""
