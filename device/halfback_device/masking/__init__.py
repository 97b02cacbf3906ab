"""A device's side of secure sums (docs/protocol.md): what it says of θ goes behind masks that fall away in the sum."""
