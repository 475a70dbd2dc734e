"""What only a CPU in bfloat16 needs: some of torch's functions in quicker ways of our own.

``train.lean_cpu=false`` leaves all of them to torch.
"""
