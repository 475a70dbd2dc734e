"""From files to batches of views: sources, decoding, crops, colours, loaders. Knows no backbone and no method."""
