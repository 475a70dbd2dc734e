"""Visual tokens: what BEiT predicts of the patches that it does not see."""
