"""Other libraries have names of their own for timm's weights: `MAPS[family]` of each file, tried both ways."""
