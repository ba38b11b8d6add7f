"""What the user brings, as data: models, layers, channel groups, and the surgery on them."""
