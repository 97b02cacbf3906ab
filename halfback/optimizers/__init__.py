"""First-order optimisers that hold less than AdamW, one file each, and the table of all."""
