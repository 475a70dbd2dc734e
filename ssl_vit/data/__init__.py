"""Files become batches of views here: sources, decoding, crops, colours, loaders. No backbone or method is known."""
