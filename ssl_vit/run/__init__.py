"""One pretraining run: planned, prepared, trained, finished; see :mod:`ssl_vit.run.pretrain`."""
