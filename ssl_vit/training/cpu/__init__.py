"""What only a CPU needs: in bfloat16 quicker ways of our own for some of torch's functions, and what avoids a kernel
that ends the process.

``train.lean_cpu=false`` leaves all of torch's functions to torch.
"""
