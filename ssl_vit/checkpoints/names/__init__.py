"""What other libraries call the weights of timm's families: `MAPS[family]` of each file, tried in both directions."""
